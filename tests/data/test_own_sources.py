"""The objects and images of data sets of one's own are checked as those of folders: refused, clipped or dropped."""

import dataclasses
import json
import re
from typing import Any, ClassVar

import numpy as np
import pytest

from detr_jax.config import Config, DataConfig, ModelConfig, OnError, SourceConfig
from detr_jax.data import CocoDataset, DataError, Objects, Sample, TrainPlan, batches, open_source, open_splits
from detr_jax.data.checking import check_source
from detr_jax.data.opening import open_to_check

SIZE = (30, 40)
GOOD = [5.0, 6.0, 20.0, 25.0]


class Listed:
    """Images of one size; boxes and labels of each are given."""

    category_ids: ClassVar = {}

    def __init__(self, objects, **members):
        self.categories = {0: "cat", 1: "dog", 2: "bird"}
        self.image_ids = range(70, 70 + len(objects))
        self.sizes = np.full((len(objects), 2), SIZE)
        self.max_objects = max(np.size(labels) for _, labels in objects)
        self._objects = objects
        self.__dict__.update(members)

    def __len__(self):
        return len(self.sizes)

    def objects(self, index):
        return Objects(*self._objects[index])

    def image(self, index):
        return np.zeros((*SIZE, 3), np.uint8)

    def __getitem__(self, index):
        return Sample(self.image(index), self.objects(index))

    def ground_truth(self):
        return {"images": [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in self.image_ids], "annotations": [],
                "categories": [{"id": label, "name": name} for label, name in self.categories.items()]}  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class ListedConfig(SourceConfig):
    source: Any = None

    def open(self, split, data):
        return self.source()


def config_of(objects, **members):
    """A configuration whose training and validation images have these objects."""
    data = DataConfig(
        dataset="listed",
        sources={"listed": ListedConfig(source=lambda: Listed(objects, **members))},
        train_short_sides=(),
        crop_short_sides=(),
        flip=False,
        train_buckets=((32, 64),),
        val_buckets=((32, 64),),
    )
    return Config(data=data, model=ModelConfig(num_classes=3))


def arrays(boxes, labels):
    return np.array(boxes, np.float32), np.array(labels, np.int32)


def sentence(config):
    """The error of opening the data. ``check-data`` must record the same one."""
    with pytest.raises(DataError) as error:
        open_splits(config)
    report = check_source(open_to_check(config, ["train"])["train"], 10)
    (recorded, *_) = report.faults.error_sentences()
    assert str(error.value).rstrip(".").partition(": ")[2] in recorded
    assert report.lines()
    return str(error.value)


def first_batch(config):
    train, _ = open_splits(config)
    return next(batches(TrainPlan(train, config.data, len(train), seed=0), train, len(train), config.data))


@pytest.mark.parametrize("label", [3, -1, 91])
def test_a_label_outside_of_the_classes_is_refused_with_image_label_and_classes(label):
    config = config_of([arrays([GOOD], [0]), arrays([GOOD, GOOD], [2, label])])
    assert re.search(rf"image 71 has the label {label}, .* 3 classes \(0 cat, 1 dog, 2 bird\)", sentence(config))


def test_labels_of_a_data_set_that_names_no_classes_are_held_against_the_model():
    config = config_of([arrays([GOOD], [2])], categories={})
    assert first_batch(config).inputs.targets.labels[0, 0] == 2
    config = config_of([arrays([GOOD], [3])], categories={})
    assert "image 70 has the label 3, and the data set has 3 classes" in sentence(config)


@pytest.mark.parametrize("empty", [np.array([], np.float32), np.zeros((0, 4), np.float32), np.zeros((1, 0)), []])
def test_an_image_without_objects_may_have_boxes_of_any_empty_shape(empty):
    config = config_of([(empty, np.array([], np.int32)), arrays([GOOD], [1])])
    for config.data.flip in (False, True):
        batch = first_batch(config)
        assert dict(zip(batch.info.image_ids.tolist(), batch.inputs.targets.count.tolist(), strict=True)) == {
            70: 0,
            71: 1,
        }


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        (arrays(GOOD, [1]), r"boxes of shape \[4\] and labels of shape \[1\]"),
        (arrays([GOOD], [1, 2]), r"boxes of shape \[1, 4\] and labels of shape \[2\]"),
        (arrays([GOOD[:3]], [1]), r"boxes of shape \[1, 3\]"),
        (arrays([], [1]), r"boxes of shape \[0, 4\] and labels of shape \[1\]"),
        (([GOOD], np.int32([1])), "an object of class list and int32 of shape"),
        ((np.float32([GOOD]), np.array(["cat"])), "must be arrays of numbers"),
        (arrays([[5, 6, np.nan, 25]], [1]), "must be four finite numbers"),
        (arrays([[5, 6, np.inf, 25]], [1]), "must be four finite numbers"),
    ],
)
def test_objects_that_are_not_boxes_and_labels_are_refused_with_the_image(objects, words):
    assert re.search(f"image 71 has .*{words}", sentence(config_of([arrays([GOOD], [0]), objects])))


def test_too_small_max_objects_is_refused_with_the_image():
    config = config_of([arrays([GOOD], [0]), arrays([GOOD] * 4, [0, 1, 2, 0])], max_objects=1)
    assert "image 71 has 4 objects, but max_objects is 1" in sentence(config)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"sizes": np.array([[30, 40]])}, r"sizes has the shape \[1, 2\]"),
        ({"sizes": [(30, 40), (30, 40)]}, "whose sizes are an object of class list: they must be an array"),
        ({"sizes": np.array([[30.0, 40.0]] * 2)}, r"whose sizes are float64 of shape \[2, 2\]: they must be an array"),
        ({"image_ids": [7]}, "image_ids has 1 entries"),
        ({"image_ids": [7, 7]}, "2 images have the id 7"),
        ({"sizes": np.array([[30, 40], [0, 40]])}, r"image 71 has the size \[0, 40\]"),
    ],
)
def test_ids_and_sizes_that_do_not_fit_are_refused(members, words):
    with pytest.raises(DataError, match=words):
        open_source(config_of([arrays([GOOD], [0])] * 2, **members), "train")


BAD_BOXES = {  # of images of 30 x 40: the box that remains, or None, by the box as it is returned
    (-10, 5, 20, 25): [0, 5, 20, 25],
    (10, 5, 60, 45): [10, 5, 40, 30],
    (20, 25, 5, 6): None,
    (5, 6, 5, 25): None,
    (50, 5, 60, 25): None,
    (5, 6, 20, 25): [5, 6, 20, 25],
}


def test_boxes_are_clipped_or_dropped_with_counts_as_those_of_a_folder(tmp_path):
    many = [arrays([GOOD] * 30, [0] * 30)] * 20  # so that the form of the boxes is not doubted
    config = config_of([arrays(list(BAD_BOXES), [1] * len(BAD_BOXES)), *many])
    batch = first_batch(config)
    row = batch.info.image_ids.tolist().index(70)
    cxcywh = batch.inputs.targets.boxes[row, : batch.inputs.targets.count[row]] * [40, 30, 40, 30]
    kept = np.concatenate([cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, :2] + cxcywh[:, 2:] / 2], axis=1)
    np.testing.assert_allclose(kept, [box for box in BAD_BOXES.values() if box], atol=1e-4)

    source = open_to_check(config, ["train"])["train"]
    report = check_source(source, 100)
    assert report.objects[0] == len(kept)
    assert (report.areas > 0).all()
    folder = CocoDataset(tmp_path, _as_coco(config, tmp_path), strict=False)
    counts = {_beginning(kind): number for kind, number in report.faults.counts.items()}
    assert counts == {_beginning(kind): number for kind, number in folder.faults.counts.items()}
    assert counts == {"boxes without area": 2, "boxes entirely outside": 1, "boxes that reach": 2}
    assert "image 70, box [20, 25, 5, 6] in 40 x 30" in "\n".join(report.lines())


def _beginning(kind):
    return " ".join(kind.split()[:3])


def _as_coco(config, folder):
    """The same boxes as an instances JSON."""
    source = open_source(config, "train")
    content = source.ground_truth()
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.png"
    for index, image_id in enumerate(source.image_ids):
        for (x0, y0, x1, y1), label in zip(*map(np.ndarray.tolist, source._objects[index]), strict=True):
            content["annotations"].append(
                {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": label, "iscrowd": 0,
                 "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 1}
            )  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def test_boxes_in_another_form_are_refused(rng):
    corner = rng.uniform(15, 19, (40, 2))
    xywh = np.concatenate([corner, rng.uniform(3, 8, (40, 2))], axis=1)
    assert "so add the corner to the size" in sentence(config_of([arrays(xywh, [0] * 40)]))
    assert "must be [x0, y0, x1, y1] in pixels" in sentence(config_of([arrays(rng.random((9, 4)), [0] * 9)]))


def test_a_data_set_that_is_opened_twice_counts_its_faults_once():
    source = Listed([arrays([GOOD, [20, 25, 5, 6]], [0, 1])] * 2)
    config = config_of([])
    config.data.sources["listed"].source = lambda: source
    train, val = open_splits(config)
    assert train is val is source
    assert list(source.faults.counts.values()) == [2]


class Unreadable(Listed):
    error: ClassVar = None

    def image(self, index):
        if index == 1:
            raise self.error
        return super().image(index)


@pytest.mark.parametrize("error", [FileNotFoundError("a.png"), KeyError("pixels"), ValueError("odd")])
def test_an_image_whose_reader_fails_is_refused_by_its_id_or_skipped(error, monkeypatch):
    monkeypatch.setattr(Unreadable, "error", error)
    config = config_of([])
    config.data.sources["listed"].source = lambda: Unreadable([arrays([GOOD], [0])] * 4)
    with pytest.raises(DataError, match=rf"Unreadable cannot read image 71 \({type(error).__name__}"):
        first_batch(config)
    config.data.on_error = OnError.SKIP
    batch = first_batch(config)
    assert sorted(batch.info.skipped) == [-1, -1, -1, 71]
    assert set(batch.info.image_ids) == {70, 72, 73}


@pytest.mark.parametrize("image", [np.zeros((30, 41, 3), np.uint8), np.zeros((30, 40, 3)), [[0]]])
def test_an_image_of_another_size_or_type_is_refused_by_its_id(image):
    config = config_of([arrays([GOOD], [0])], image=lambda index: image)
    with pytest.raises(DataError, match=r"image 70 is .* it must be uint8 of shape \[30, 40, 3\]"):
        first_batch(config)
    report = check_source(open_to_check(config, ["train"])["train"], 10)
    assert sum(report.faults.errors.values()) == 1


def test_an_error_in_the_code_of_a_data_set_names_its_class_entry_and_line(tmp_path):
    config = config_of([])  # the maximum of no images
    words = (
        rf"data\.sources\.listed \(ListedConfig\) cannot be opened: {re.escape(__file__)}, line \d+: ValueError: max"
    )
    with pytest.raises(DataError, match=words):
        open_source(config, "train")
    assert re.match(words, str(open_to_check(config, ["train"])["train"]))
