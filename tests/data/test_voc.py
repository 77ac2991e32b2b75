import numpy as np
import pytest
from PIL import Image

from detr_jax.config import Config, DataConfig
from detr_jax.data import DataError, VocDataset, open_source
from detr_jax.data.voc import VOC_CLASSES
from detr_jax.evaluation.coco import CocoEvaluator
from detr_jax.structures import Detections


def _xml(*objects, size=(30, 40)):
    """The text of a VOC file. ``objects`` are (name, xmin, ymin, xmax, ymax[, difficult])."""
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
    """The official layout with images of 30 x 40 pixels (height x width): two for training, 2008_03 for validation."""
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


def test_corners_are_pixels_counted_from_1_and_included(root):
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
    boxes = np.array([[[0, 0, 40, 30], [4, 5, 10, 12], [4, 5, 10, 11]]])  # the last two overlap the difficult object
    labels = np.array([[VOC_CLASSES.index("sofa"), VOC_CLASSES.index("person"), VOC_CLASSES.index("person")]])
    evaluator.add([1], Detections(boxes, np.array([[0.5, 0.9, 0.8]]), labels))
    metrics = evaluator.compute()
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["AP/person"] is None


def test_other_names_are_sorted_over_all_splits(root):
    (root / "Annotations/2008_03.xml").write_text(_xml(("zebra", 1, 1, 5, 5), ("ant", 2, 2, 5, 5)))
    train, val = VocDataset(root, "train"), VocDataset(root, "val")
    assert train.categories == val.categories == {0: "ant", 1: "person", 2: "sofa", 3: "zebra"}
    assert val.objects(0).labels.tolist() == [3, 0]


@pytest.mark.parametrize("layout", ["next to", "folders"])
def test_images_with_xml_files_next_to_them_are_read(root, layout):
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


def test_a_missing_size_is_read_from_the_image(root):
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
def test_the_error_names_a_wrong_file(root, text, words):
    (root / "Annotations/2008_01.xml").write_text(text)
    with pytest.raises(DataError) as error:
        VocDataset(root, "train")
    assert words in str(error.value)
    assert "2008_01.xml" in str(error.value)
    assert "\n" not in str(error.value)
    source = VocDataset(root, "train", strict=False)
    assert sum(source.faults.errors.values()) == 1
    assert len(source) == 2


def test_errors_name_missing_files_and_splits(root):
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


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("2008_01.jpg\n2008_02.xml\n", ["2008_01", "2008_02"]),
        ("JPEGImages/2008_01.jpg\n.\\JPEGImages\\2008_02.jpg\n", ["2008_01", "2008_02"]),
        ("/home/me/VOC/JPEGImages/2008_01.jpg\n", ["2008_01"]),
        ("\ufeff2008_01\r\n\r\n2008_02\r\n", ["2008_01", "2008_02"]),
        ("2008_01  1\n2008_02 -1\n2008_03  0\n", ["2008_01", "2008_02", "2008_03"]),
        ('"2008_01"\n2008_02\n', ["2008_01", "2008_02"]),
        ("my photo 1\n", ["my photo 1"]),
        ('"my photo 1"\n"sub dir/my photo 0"\n', ["my photo 1", "sub dir/my photo 0"]),
        ("sub dir/my photo 0.JPG\nmy photo 1\n", ["sub dir/my photo 0", "my photo 1"]),
    ],
)
def test_lists_are_read_as_annotation_tools_write_them(root, lines, expected):
    for name in ("my photo 1", "sub dir/my photo 0"):
        for folder, suffix in (("JPEGImages", "JPG"), ("Annotations", "XML")):
            (root / folder / "sub dir").mkdir(exist_ok=True)
            (root / folder / f"{name}.{suffix}").write_text(_xml(("sofa", 2, 2, 9, 9)))
    (root / "ImageSets/Main/tool.txt").write_text(lines, encoding="utf-8", newline="")
    source = VocDataset(root, "tool")
    names = [image["file_name"].removeprefix(f"{root}/JPEGImages/") for image in source.ground_truth()["images"]]
    assert [name.rsplit(".", 1)[0] for name in names] == expected
    assert not source.faults.counts


def test_names_listed_twice_or_in_another_case_are_counted(root):
    (root / "ImageSets/Main/odd.txt").write_text("2008_01\n2008_01\nROOM\n")
    for folder, name in (("JPEGImages", "Room.JPG"), ("Annotations", "room.xml")):
        (root / folder / name).write_text(_xml(("sofa", 2, 2, 9, 9)))
    source = VocDataset(root, "odd")
    assert [len(source.objects(index).labels) for index in range(len(source))] == [1, 1]
    assert sorted(source.faults.counts.values()) == [1, 1]


def test_a_flag_that_not_every_line_has_is_part_of_the_name(root):
    (root / "ImageSets/Main/odd.txt").write_text("2008_01\n2008_02 1\n")
    with pytest.raises(DataError, match=r"2008_02 1\.xml cannot be read \(it does not exist\)"):
        VocDataset(root, "odd")


@pytest.mark.parametrize(
    ("corners", "one_based", "meant", "expected"),
    [
        ([(1, 1, 40, 30), (11, 6, 20, 15)], None, "pixels, counted from 1", [[0, 0, 40, 30], [10, 5, 20, 15]]),
        (
            [(1, 1, 40, 30), (11, 6, 20, 15)],
            False,
            "edges, counted from 0 (data.sources.voc.one_based is false",
            [[1, 1, 40, 30], [11, 6, 20, 15]],
        ),
        (
            [(0, 0, 40, 30), (11, 6, 20, 15)],
            None,
            "edges, counted from 0 (1 of 2 boxes start at 0",
            [[0, 0, 40, 30], [11, 6, 20, 15]],
        ),
        (
            [(0, 0, 40, 30), (11, 6, 20, 15)],
            True,
            "pixels, counted from 1 and included (data.sources.voc.one_based is true",
            [[0, 0, 40, 30], [10, 5, 20, 15]],
        ),
        (
            [("10.5", "5.25", "20.5", 15), (11, 6, 20, 15)],
            None,
            "edges, counted from 0 (1 of 2 boxes have corners that are not whole",
            [[10.5, 5.25, 20.5, 15], [11, 6, 20, 15]],
        ),
        (
            [("10.0", "5.0", "20.0", "15.0")],
            None,
            "edges, counted from 0 (1 of 1 boxes have corners written with a decimal point",
            [[10, 5, 20, 15]],
        ),
        (
            [(0, 0, 0, 0), (1, 1, 40, 30)],
            None,
            "pixels, counted from 1",
            [[0, 0, 40, 30]],
        ),  # a box without area, a mistake of an annotator, is not a sign
    ],
)
def test_all_corners_together_decide_between_pixels_from_1_and_edges(root, corners, one_based, meant, expected):
    for path in (root / "Annotations").iterdir():
        path.write_text(_xml())
    (root / "Annotations/2008_01.xml").write_text(_xml(*(("sofa", *four) for four in corners)))
    source = VocDataset(root, "train", one_based=one_based)
    np.testing.assert_allclose(source.objects(0).boxes, expected)
    assert source.understood.startswith(f"corners are {meant}")


def test_a_few_fractions_do_not_turn_official_corners_into_edges(root):
    things = [("sofa", 1 + index % 5, 2, 20, 25) for index in range(99)]
    (root / "Annotations/2008_01.xml").write_text(_xml(*things, ("sofa", "45.70000076293945", 2, 46, 9), size=(90, 90)))
    source = VocDataset(root, "train")
    assert "pixels, counted from 1" in source.understood
    assert "1 with fractions" in source.understood
    np.testing.assert_allclose(source.objects(0).boxes[0], [0, 1, 20, 25])


def test_corners_in_the_wrong_order_are_swapped_unless_there_are_many(root):
    good = [("sofa", 2, 3, 30, 20)] * 30
    (root / "Annotations/2008_01.xml").write_text(_xml(*good, ("sofa", 30, 20, 2, 3)))
    source = VocDataset(root, "train")
    np.testing.assert_array_equal(source.objects(0).boxes, [[1, 2, 30, 20]] * 31)
    assert sum(source.faults.counts.values()) == 1
    (root / "Annotations/2008_01.xml").write_text(_xml(*good, *[("sofa", 25, 20, 10, 8)] * 9))
    with pytest.raises(
        DataError, match=r"9 of 40 boxes have xmin above xmax.*as if xmax and ymax were width and height"
    ):
        VocDataset(root, "train")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("<polygon><x1>4</x1><y1>5</y1><x2>9.5</x2><y2>5</y2><x3>6</x3><y3>12</y3></polygon>", [4, 5, 9.5, 12]),
        ("<polygon><pt><x>4</x><y>5</y></pt><pt><x>9.5</x><y>12</y></pt></polygon>", [4, 5, 9.5, 12]),
        ("<robndbox><cx>20</cx><cy>15</cy><w>10</w><h>4</h><angle>0</angle></robndbox>", [15, 13, 25, 17]),
        ("<robndbox><cx>20</cx><cy>15</cy><w>10</w><h>4</h><angle>1.5707963</angle></robndbox>", [18, 10, 22, 20]),
    ],
)
def test_objects_without_a_box_get_the_bounding_box_of_their_shape(root, shape, expected):
    thing = f"<object><name>cat</name>{shape}</object></annotation>"
    (root / "Annotations/2008_01.xml").write_text(_xml(("cat", 1, 1, 5, 5)).replace("</annotation>", thing))
    source = VocDataset(root, "train")
    np.testing.assert_allclose(source.objects(0).boxes, [[0, 0, 5, 5], expected], atol=1e-5)
    assert list(source.faults.counts.values()) == [1]


def test_every_box_of_an_object_is_read(root):
    text = _xml(("cat", 1, 1, 5, 5)).replace(
        "<bndbox>", "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>4</xmax><ymax>9</ymax></bndbox><bndbox>", 1
    )
    (root / "Annotations/2008_01.xml").write_text(text)
    np.testing.assert_array_equal(VocDataset(root, "train").objects(0).boxes, [[1, 1, 4, 9], [0, 0, 5, 5]])


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ("gbk", "gbk"),
        ("utf-16", "utf-16"),
        ("", "utf-16"),
        ("big5", "big5"),
        ("UTF-8", "utf-8"),
    ],
)
def test_files_are_read_in_their_encoding_and_with_a_namespace(root, declared, encoding):
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    text = head + _xml(("貓", 1, 1, 5, 5)).replace("<annotation>", '<annotation xmlns="http://example.org/voc">')
    (root / "Annotations/2008_01.xml").write_bytes(text.encode(encoding))
    assert "貓" in VocDataset(root, "train").categories.values()


@pytest.mark.parametrize(
    "entity", ['<!ENTITY a "lol">', '<!ENTITY a SYSTEM "file:///etc/hostname">', '<!ENTITY % a "x">', "<!entity a 'b'>"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entities_are_refused(root, entity, encoding):
    text = f"<!DOCTYPE x [{entity}]>" + _xml(("sofa", 1, 1, 5, 5))
    (root / "Annotations/2008_01.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=r"2008_01\.xml cannot be read as XML \(it defines entities"):
        VocDataset(root, "train")


def _plain(folder, images, **descriptions):
    folder.mkdir(exist_ok=True)
    for name in images:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / name)
    for name, said in descriptions.items():
        (folder / f"{name}.xml").write_text(_xml(("cat", 1, 1, 5, 5)).replace("odd.jpg", said))
    source = VocDataset(folder, ".")
    names = [image["file_name"].removeprefix(f"{folder}/") for image in source.ground_truth()["images"]]
    return [name for index, name in enumerate(names) if len(source.objects(index).labels)], source.faults.counts


def test_the_file_name_in_an_xml_file_decides_between_images_with_the_same_stem(tmp_path):
    images = ["a.jpg", "a.png", "b.jpg"]
    assert _plain(tmp_path / "1", images, a="a.jpg", b="b.jpg")[0] == ["a.jpg", "b.jpg"]
    assert _plain(tmp_path / "2", images, a="C:\\set\\A.PNG", b="old.jpg")[0] == ["a.png", "b.jpg"]
    with pytest.raises(DataError, match=r"a\.xml may describe a\.jpg or a\.png, and its <filename> is old\.jpg"):
        _plain(tmp_path / "3", images, a="old.jpg")


def test_an_xml_file_of_another_name_belongs_to_the_image_that_it_names(tmp_path):
    found, counts = _plain(tmp_path / "1", ["a.jpg", "b.jpg"], x="b.jpg", y="gone.jpg")
    assert found == ["b.jpg"]
    assert counts == {
        "XML files that name an image of another name were read": 1,
        "XML files without an image were ignored": 1,
    }
    found, counts = _plain(tmp_path / "2", ["a.jpg", "b.jpg"], a="b.jpg", b="b.jpg")
    assert found == ["a.jpg", "b.jpg"]
    assert list(counts.values()) == [1]  # a.xml names b.jpg, but belongs to a.jpg


def test_images_and_classes_in_sub_folders_and_links_are_read(tmp_path):
    store = tmp_path / "store"
    assert _plain(store, ["a.jpg", "sub/b.jpg"], a="a.jpg", b="b.jpg")[0] == ["a.jpg", "sub/b.jpg"]
    (store / "sub" / "b.xml").write_text(_xml(("bolt", 1, 1, 5, 5)))
    (store / "b.xml").unlink()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train").symlink_to(store)
    source = VocDataset(tmp_path / "set", "train")
    assert source.categories == {0: "bolt", 1: "cat"}
    assert [source.objects(index).labels.tolist() for index in range(2)] == [[1], [0]]


def test_it_is_opened_by_name(root):
    config = Config(data=DataConfig(dataset="voc", root=str(root)))
    assert len(open_source(config, "train")) == 2
    assert len(open_source(config, "val")) == 1
    config.data.train_split = "trainval"
    with pytest.raises(DataError, match=r"no split 'trainval'.*data\.train_split"):
        open_source(config, "train")
