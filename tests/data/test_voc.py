import numpy as np
import pytest
from PIL import Image

from detr_jax.config import Config, DataConfig
from detr_jax.data import DataError, VocDataset, open_source
from detr_jax.data.voc import VOC_CLASSES
from detr_jax.evaluation.coco import CocoEvaluator


def _xml(*objects, size=(30, 40)):
    """``objects`` are (name, xmin, ymin, xmax, ymax[, difficult])."""
    text = "".join(
        f"<object><name>{name}</name><difficult>{int(bool(difficult))}</difficult><bndbox><xmin>{x0}</xmin>"
        f"<ymin>{y0}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
        for name, x0, y0, x1, y1, *difficult in objects
    )
    given = "" if size is None else f"<size><width>{size[1]}</width><height>{size[0]}</height><depth>3</depth></size>"
    return f"<annotation><filename>odd.jpg</filename>{given}{text}</annotation>"


@pytest.fixture
def root(tmp_path, rng):
    """The official layout: 2008_01 and 2008_02 to train on, 2008_03 to validate on, of 30 x 40 (height x width)."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    objects = {
        "2008_01": [("sofa", 1, 1, 40, 30), ("person", 5, 6, 10, 12, True)],
        "2008_02": [],
        "2008_03": [("cat", 3, 4, 3, 4)],
    }
    for name, things in objects.items():
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / f"JPEGImages/{name}.jpg")
        (tmp_path / f"Annotations/{name}.xml").write_text(_xml(*things))
    (tmp_path / "ImageSets/Main/train.txt").write_text("2008_01\n2008_02\n")
    (tmp_path / "ImageSets/Main/val.txt").write_text("2008_03\n")
    return tmp_path


def test_corners_count_pixels_from_1_and_are_included(root):
    train, val = VocDataset(root, "train"), VocDataset(root, "val")
    np.testing.assert_array_equal(train[0].objects.boxes, [[0, 0, 40, 30]])
    np.testing.assert_array_equal(val[0].objects.boxes, [[2, 3, 3, 4]])
    assert train[0].image.shape == (30, 40, 3)
    assert len(train[1].objects.labels) == 0
    assert [VOC_CLASSES[label] for label in (*train[0].objects.labels, *val[0].objects.labels)] == ["sofa", "cat"]
    assert train.categories == val.categories == dict(enumerate(VOC_CLASSES))
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_difficult_objects_are_neither_trained_on_nor_evaluated(root):
    source = VocDataset(root, "train")
    truth = source.ground_truth()
    difficult = [one for one in truth["annotations"] if one["iscrowd"]]
    assert [one["bbox"] for one in difficult] == [[4, 5, 6, 7]]
    evaluator = CocoEvaluator(truth)
    boxes = np.array([[[0, 0, 40, 30], [4, 5, 10, 12], [4, 5, 10, 11]]])  # the latter two meet the difficult one
    labels = np.array([[VOC_CLASSES.index("sofa"), VOC_CLASSES.index("person"), VOC_CLASSES.index("person")]])
    evaluator.add([1], boxes, np.array([[0.5, 0.9, 0.8]]), labels)
    metrics = evaluator.metrics()
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["AP/person"] is None


def test_other_names_are_sorted_over_all_splits(root):
    (root / "Annotations/2008_03.xml").write_text(_xml(("zebra", 1, 1, 5, 5), ("ant", 2, 2, 5, 5)))
    train, val = VocDataset(root, "train"), VocDataset(root, "val")
    assert train.categories == val.categories == {0: "ant", 1: "person", 2: "sofa", 3: "zebra"}
    assert val.objects(0).labels.tolist() == [3, 0]


@pytest.mark.parametrize("layout", ["beside", "folders"])
def test_images_with_xml_files_beside_them_are_read(root, layout):
    target = root / "plain" / "valid"
    if layout == "folders":
        (target / "JPEGImages").mkdir(parents=True)
        (target / "Annotations").mkdir()
    else:
        target.mkdir(parents=True)
    for name in ("2008_01", "2008_02", "2008_03"):
        folders = ("JPEGImages", "Annotations") if layout == "folders" else (".", ".")
        (root / f"JPEGImages/{name}.jpg").rename(target / folders[0] / f"{name}.jpg")
        (root / f"Annotations/{name}.xml").rename(target / folders[1] / f"{name}.xml")
    next(target.rglob("2008_02.xml")).unlink()
    for source in (VocDataset(root / "plain", "valid"), VocDataset(target, ".")):
        assert [len(source[index].objects.labels) for index in range(len(source))] == [1, 0, 1]
    with pytest.raises(
        DataError, match=r"neither ImageSets/Main nor a folder tost \(folders: valid\).*data\.val_split"
    ):
        VocDataset(root / "plain", "tost")


def test_a_size_that_is_missing_comes_from_the_image(root):
    for size in (None, (0, 0)):
        (root / "Annotations/2008_01.xml").write_text(_xml(("sofa", 1, 1, 40, 30), size=size))
        source = VocDataset(root, "train")
        assert source.sizes.tolist() == [[30, 40], [30, 40]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read as XML"),
        ("<annotation><object>", "cannot be read as XML"),
        (_xml(("", 1, 1, 5, 5)), "object 1 has no name"),
        (_xml(("cat", 1, 1, 5, 5), ("cat", 1, "x", 5, 5)), "object 2 has bndbox=['1', 'x', '5', '5']"),
        (_xml(("cat", 1, 1, 5, "inf")), "object 1 has bndbox="),
        (_xml().replace("</annotation>", "<object><name>cat</name></object></annotation>"), "bndbox=[None, None"),
    ],
)
def test_a_wrong_file_is_named(root, text, words):
    (root / "Annotations/2008_01.xml").write_text(text)
    with pytest.raises(DataError) as error:
        VocDataset(root, "train")
    assert words in str(error.value)
    assert "2008_01.xml" in str(error.value)
    assert "\n" not in str(error.value)
    source = VocDataset(root, "train", strict=False)
    assert sum(source.faults.errors.values()) == 1
    assert len(source) == 2


def test_missing_files_and_splits_are_named(root):
    with pytest.raises(DataError, match=r"no split 'test' \(ImageSets/Main has train, val\)"):
        VocDataset(root, "test")
    (root / "Annotations/2008_01.xml").unlink()
    with pytest.raises(DataError, match=r"2008_01\.xml cannot be read"):
        VocDataset(root, "train")
    (root / "JPEGImages/2008_03.jpg").unlink()
    with pytest.raises(DataError, match=r"2008_03\.jpg does not exist"):
        VocDataset(root, "val")[0]
    (root / "ImageSets/Main/val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt is empty"):
        VocDataset(root, "val")


def test_boxes_beyond_the_image_are_clipped_and_counted(root):
    (root / "Annotations/2008_01.xml").write_text(
        _xml(("cat", 30, 1, 60, 10), ("cat", 9, 5, 4, 9), ("cat", 50, 5, 60, 9))
    )
    source = VocDataset(root, "train")
    np.testing.assert_array_equal(source.objects(0).boxes, [[29, 0, 40, 10], [3, 4, 9, 9]])
    assert sorted(source.faults.counts.values()) == [1, 1, 1]
    assert "2008_01.xml object 1 of image 1" in "".join(source.faults.sentences())


def test_it_is_opened_by_name(root):
    config = Config(data=DataConfig(dataset="voc", root=str(root)))
    assert len(open_source(config, "train")) == 2
    assert len(open_source(config, "val")) == 1
    config.data.train_split = "trainval"
    with pytest.raises(DataError, match=r"no split 'trainval'.*data\.train_split"):
        open_source(config, "train")
