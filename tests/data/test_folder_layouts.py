"""The exports of annotation tools are recognised, and read with the same result as by plain parsing."""

import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image

from detr_jax.config import Config, DataConfig
from detr_jax.data import find_layout, open_splits
from detr_jax.data.voc import VocDataset, recognise_voc
from detr_jax.data.yolo import YoloDataset, recognise_yolo
from tests.data import annotation_exporters


@pytest.fixture
def splits(rng):
    return {"train": annotation_exporters.draw(rng, 5, "t"), "val": annotation_exporters.draw(rng, 3, "v")}


def _plain_yolo(root):
    """The class and box (xywh in pixels) of each row, by the stem of the image."""
    found = {}
    for image in [*root.rglob("*.jpg"), *root.rglob("*.png"), *root.rglob("*.JPG")]:
        labels = image.with_suffix(".txt")
        if not labels.exists():
            labels = next(root.rglob(labels.name))
        width, height = Image.open(image).size
        found[image.stem] = []
        for row in labels.read_text().split("\n")[:-1]:
            label, cx, cy, w, h = map(float, row.split(" "))
            box = [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height]
            found[image.stem].append((annotation_exporters.NAMES[int(label)], box))
    return found


def _plain_voc(root, first):
    """The same for XML files. ``first`` is the number of the pixel at the image's corner."""
    found = {}
    for path in root.rglob("*.xml"):
        things = []
        for thing in ElementTree.parse(path).getroot().findall("object"):
            x0, y0, x1, y1 = (float(thing.find("bndbox").findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
            things.append((thing.findtext("name"), [x0 - first, y0 - first, x1 - x0 + first, y1 - y0 + first]))
        found[path.stem] = things
    return found


def _read(source):
    truth = source.ground_truth()
    found = {image["id"]: (image["file_name"].rsplit("/", 1)[-1].rsplit(".", 1)[0], []) for image in truth["images"]}
    for one in truth["annotations"]:
        found[one["image_id"]][1].append((source.categories[one["category_id"]], one["bbox"]))
    assert len(found) == len(source)
    return dict(found.values())


def _check(root, found, counts, opened, expected):
    assert found is not None
    assert found == find_layout(DataConfig(root=str(root)))
    assert counts.keys() <= found.splits.keys()
    assert "\n" not in found.sentence
    assert all(f"{name}: " in found.sentence for name in counts)
    read = {}
    for split, count in counts.items():
        source = opened(*found.splits[split])
        assert not source.faults.counts
        assert len(source) == count
        assert source[count - 1].image.shape[:2] == tuple(source.sizes[count - 1])
        read |= _read(source)
    assert read.keys() == expected.keys()
    for stem, things in expected.items():
        assert [name for name, _ in read[stem]] == [name for name, _ in things]
        assert [box for _, box in read[stem]] == [pytest.approx(box, abs=1e-6) for _, box in things]


@pytest.mark.parametrize("export", annotation_exporters.YOLO)
def test_yolo_exports_are_recognised_and_read_as_by_plain_parsing(tmp_path, splits, export):
    root = tmp_path / "my set"
    counts = export(root, splits)
    _check(root, recognise_yolo(root), counts, YoloDataset, _plain_yolo(root))
    assert recognise_voc(root) is None


@pytest.mark.parametrize("export", annotation_exporters.VOC)
def test_voc_exports_are_recognised_and_read_as_by_plain_parsing(tmp_path, splits, export):
    root = tmp_path / "my set"
    counts = export(root, splits)
    first = 0 if export in (annotation_exporters.cvat_voc, annotation_exporters.datumaro_voc) else 1
    _check(root, recognise_voc(root), counts, VocDataset, _plain_voc(root, first))
    assert recognise_yolo(root) is None


def test_folders_of_other_kinds_are_not_recognised(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "hyp.yaml").write_text("lr: 0.1\n")
    (tmp_path / "annotations.xml").write_text("<annotations><image/></annotations>")
    Image.new("RGB", (9, 9)).save(tmp_path / "images" / "a.png")
    assert recognise_yolo(tmp_path) is None
    assert recognise_voc(tmp_path) is None
    assert recognise_yolo(tmp_path / "none") is None
    assert recognise_voc(tmp_path / "none") is None


@pytest.mark.parametrize(
    "export",
    [annotation_exporters.label_studio_yolo, annotation_exporters.plain_voc, annotation_exporters.one_folder_voc],
)
def test_a_data_set_without_splits_is_divided_by_file_names_with_the_same_classes(tmp_path, splits, export):
    export(tmp_path, splits)
    config = Config(data=DataConfig(root=str(tmp_path), val_share=0.3))
    config.model.num_classes = 0
    train, val = open_splits(config)
    stems = [set(_read(source)) for source in (train, val)]
    assert stems[0] | stems[1] == {one.name for one in (*splits["train"], *splits["val"])}
    assert not stems[0] & stems[1]
    assert train.categories == val.categories
