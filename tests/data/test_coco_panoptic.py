"""COCO's panoptic data: drawn shapes written in its format, read back, and damaged."""

import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from detr_jax.config import BACKGROUND_KINDS, Config, DataConfig, ShapesConfig
from detr_jax.data import CocoPanopticDataset, DataError, ShapesDataset, open_source
from detr_jax.data.checking import check_source
from detr_jax.data.opening import open_to_check
from detr_jax.data.panoptic_png import SegmentIds, read_png
from detr_jax.data.shapes import write_coco

SHAPES = ShapesConfig(train_images=6, val_images=3, max_objects=4, backgrounds=BACKGROUND_KINDS)


@pytest.fixture
def folder(tmp_path):
    write_coco(SHAPES, tmp_path / "shapes")
    return tmp_path / "shapes"


def opened(folder, split="train", **fields):
    annotations = folder / "annotations" / f"panoptic_{split}2017.json"
    return CocoPanopticDataset(folder / f"{split}2017", annotations, annotations.with_suffix(""), masks=True, **fields)


def change(folder, function, split="train"):
    file = folder / "annotations" / f"panoptic_{split}2017.json"
    form = json.loads(file.read_text())
    function(form)
    file.write_text(json.dumps(form))


def test_segments_masks_and_boxes_are_those_that_were_drawn(folder):
    drawn, source = ShapesDataset(SHAPES, "train", masks=True), opened(folder)
    assert source.categories == drawn.categories
    assert source.stuff_labels == drawn.stuff_labels == {3, 4, 5}
    assert source.max_objects == max(len(drawn.objects(i).labels) for i in range(6))
    for index in range(len(source)):
        ours, theirs = source.panoptic(index), drawn.panoptic(index)
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        assert ours.areas.tolist() == theirs.areas.tolist()
        assert ours.labels.tolist() == theirs.labels.tolist()
        objects, expected = source.objects(index), drawn.objects(index)
        np.testing.assert_array_equal(objects.masks.bitmaps(), expected.masks.bitmaps())
        np.testing.assert_array_equal(objects.boxes[:, :2], expected.boxes[:, :2])
        np.testing.assert_array_equal(objects.boxes[:, 2:], expected.boxes[:, 2:] - 1)  # the original's boxes
    truth, things = source.ground_truth(), drawn.ground_truth()
    assert [one["id"] for one in truth["categories"]] == [0, 1, 2]
    assert [one["bbox"] for one in truth["annotations"]] == [one["bbox"] for one in things["annotations"]]
    assert [one["segmentation"] for one in truth["annotations"]] == [
        one["segmentation"] for one in things["annotations"]
    ]


def test_the_folder_is_recognised_and_can_be_trained_on(folder):
    config = Config(data=DataConfig(dataset="coco_panoptic", root=str(folder), masks=True))
    config.model.num_classes = 6
    for split, number in (("train", 6), ("val", 3)):
        source = open_source(config, split)
        assert isinstance(source, CocoPanopticDataset)
        assert len(source) == number
    both = Config(data=DataConfig(root=str(folder)))
    both.model.num_classes = 6
    assert open_source(both, "train").origin.endswith(")")
    assert not isinstance(open_source(both, "train"), CocoPanopticDataset), "instances come first"


def test_crowds_are_trained_on_and_not_told_apart(folder):
    def crowd(form):
        form["annotations"][0]["segments_info"][0]["iscrowd"] = 1

    change(folder, crowd)
    source = opened(folder)
    assert source.panoptic(0).crowds.tolist()[0]
    assert len(source.objects(0).labels) == len(source.panoptic(0).labels)


def test_worker_processes_and_parts_see_the_same_masks(folder):
    source = opened(folder)
    copy = pickle.loads(pickle.dumps(source))
    part = source.select(np.arange(6) % 2 == 1)
    for index in range(3):
        expected = source.objects(2 * index + 1).masks.bitmaps()
        np.testing.assert_array_equal(copy.objects(2 * index + 1).masks.bitmaps(), expected)
        np.testing.assert_array_equal(part.objects(index).masks.bitmaps(), expected)
        np.testing.assert_array_equal(part.panoptic(index).ids, source.panoptic(2 * index + 1).ids)


def test_relabelled_classes_keep_their_stuff(folder):
    source = opened(folder)
    source.relabel({label: label + 10 for label in source.categories})
    assert source.stuff_labels == {13, 14, 15}
    assert set(source.panoptic(0).labels.tolist()) <= set(range(10, 16))


def png(folder, index=0):
    source = opened(folder)
    return folder / "annotations" / "panoptic_train2017" / f"{source.image_ids[index]:06d}.png"


def damage_size(path):
    Image.open(path).resize((10, 12)).save(path)


def damage_palette(path):
    Image.open(path).convert("P").save(path)


def damage_ids(path):
    pixels = np.array(Image.open(path))
    pixels[:3, :3] = (0, 0, 9)
    Image.fromarray(pixels).save(path)


def damage_file(path):
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_size, r"has 12 x 10 pixels \(height x width\), but its image has"),
        (damage_palette, "has a palette: it must be an RGB image"),
        (damage_ids, "has pixels with the id 589824, which its JSON does not list"),
        (damage_file, "cannot be decoded"),
    ],
)
def test_a_png_that_cannot_be_used_is_named(folder, damage, sentence):
    path = png(folder)
    damage(path)
    source = opened(folder)
    with pytest.raises(DataError, match=sentence) as error:
        source.panoptic(0)
    assert str(path) in str(error.value)
    config = Config(data=DataConfig(dataset="coco_panoptic", root=str(folder), masks=True))
    report = check_source(open_to_check(config, ["train"])["train"], 100)
    assert report.faults.errors["masks that cannot be read"] == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_ids_are_red_then_green_then_blue(tmp_path, rng, mode):
    pixels = rng.integers(0, 256, (*rng.integers(1, 40, 2), len(mode)), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    red, green, blue = pixels[..., :3].astype(np.int64).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_png(tmp_path / "x.png", pixels.shape[:2]), red + 256 * green + 65536 * blue)


def test_the_part_of_a_segment_is_its_smallest_box(rng):
    ids = rng.choice([0, 1, 5, 300, 70000], (*rng.integers(1, 30, 2),), p=[0.4, 0.3, 0.2, 0.05, 0.05]).astype(np.int32)
    there = np.setdiff1d(np.unique(ids), [0])
    source = SegmentIds(lambda: ids, ids.shape, there, "it")
    for index, wanted in enumerate(there.tolist()):
        top, left, bitmap = source.part(index)
        rows, columns = np.nonzero(ids == wanted)
        assert (top, left) == (rows.min(), columns.min())
        np.testing.assert_array_equal(
            bitmap, (ids == wanted)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        )


def test_a_missing_png_is_named_at_opening(folder):
    path = png(folder)
    path.unlink()
    with pytest.raises(DataError, match="does not exist, although image 0 needs it") as error:
        opened(folder)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change_first", "sentence"),
    [
        (lambda one: one.update(id=0), "has a segment 0, and ids must be from 1 to 16777215"),
        (lambda one: one.update(id=2**24), "has a segment 16777216, and ids must be from 1 to"),
    ],
)
def test_ids_out_of_range_are_named(folder, change_first, sentence):
    change(folder, lambda form: change_first(form["annotations"][0]["segments_info"][0]))
    with pytest.raises(DataError, match=sentence):
        opened(folder)


def test_ids_that_occur_twice_are_named(folder):
    def repeat(form):
        segments = form["annotations"][0]["segments_info"]
        segments.append(dict(segments[0]))

    change(folder, repeat)
    with pytest.raises(DataError, match="image 0 has two segments"):
        opened(folder)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("area", 3, "and its JSON has the area 3"),
        ("bbox", [0, 0, 2, 2], r"\(xywh in pixels\), and its JSON has the bbox"),
    ],
)
def test_check_data_compares_the_json_with_the_pixels(folder, field, value, sentence):
    change(folder, lambda form: form["annotations"][0]["segments_info"][0].update({field: value}))
    config = Config(data=DataConfig(dataset="coco_panoptic", root=str(folder), masks=True))
    report = check_source(open_to_check(config, ["train"])["train"], 100)
    assert report.faults.errors["masks that cannot be read"] == 1
    assert re.search(sentence, report.faults.first["masks that cannot be read"][0])


def test_a_list_of_categories_beside_the_annotations_is_no_split(folder):
    (folder / "annotations" / "panoptic_coco_categories.json").write_text('[{"id": 1, "name": "a", "isthing": 1}]')
    config = Config(data=DataConfig(dataset="coco_panoptic", root=str(folder)))
    assert len(open_source(config, "train"))


def test_an_id_without_pixels_is_named_in_training_too(folder):
    def add(form):
        form["annotations"][0]["segments_info"].append(
            {"id": 999, "category_id": 0, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}
        )

    change(folder, add)
    with pytest.raises(DataError, match="has no pixel with the id 999, which its JSON lists"):
        opened(folder).objects(0).masks.packed()


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda form: form.pop("categories"), "is not a panoptic JSON"),
        (lambda form: form["annotations"].pop(0), "image 0 has no entry under annotations"),
        (lambda form: form["annotations"].append(form["annotations"][0]), "image 0 has two entries under annotations"),
        (lambda form: form["annotations"][0].update(image_id=77), "image 77, which is not listed|no entry"),
        (
            lambda form: form["annotations"][0]["segments_info"][0].update(category_id=50),
            "has category_id=50, which is not listed under categories",
        ),
        (lambda form: form["annotations"][0]["segments_info"][0].pop("bbox"), "is not a panoptic JSON"),
    ],
)
def test_a_json_that_cannot_be_used_is_named(folder, function, sentence):
    change(folder, function)
    with pytest.raises(DataError, match=sentence):
        opened(folder)


def test_the_folder_of_png_files_is_needed(folder):
    (folder / "annotations" / "panoptic_train2017").rename(folder / "elsewhere")
    config = Config(data=DataConfig(dataset="coco_panoptic", root=str(folder)))
    with pytest.raises(DataError, match=r"needs the folder .*panoptic_train2017 with its PNG files"):
        open_source(config, "train")
