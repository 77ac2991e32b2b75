"""Data sets of one's own: a class outside of the package, opened, checked and trained on like the others."""

import dataclasses
import shutil
from typing import ClassVar

import numpy as np
import pytest

from detr_jax.config import (
    CocoFiles,
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    ShapesConfig,
    SourceConfig,
    check,
    ranged,
)
from detr_jax.data import DataError, Objects, Sample, TrainPlan, batches, find_layout, open_source, open_splits
from detr_jax.data.shapes import write_coco


class Squares:
    """Images with one square each, in arrays; it has what `Source` lists, but no ``faults``."""

    categories: ClassVar = {0: "square"}
    category_ids: ClassVar = {}
    max_objects = 1

    def __init__(self, number, side):
        self.image_ids = range(100, 100 + number)
        self.sizes = np.full((number, 2), side)

    def __len__(self):
        return len(self.sizes)

    def objects(self, index):
        return Objects(np.float32([[index, 1, index + 5, 6]]), np.int32([0]))

    def __getitem__(self, index):
        image = np.zeros((*self.sizes[index], 3), np.uint8)
        image[1:6, index : index + 5] = 255
        return Sample(image, self.objects(index))

    def ground_truth(self):
        images = [{"id": k, "height": h, "width": w} for k, (h, w) in zip(self.image_ids, self.sizes, strict=True)]
        return {"images": images, "annotations": [], "categories": [{"id": 0, "name": "square"}]}


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A data set that takes no new attributes."""

    number: int
    side: int

    def __getattr__(self, name):
        if name == "faults":
            raise AttributeError(name)
        return getattr(Squares(self.number, self.side), name)

    def __len__(self):
        return self.number

    def __getitem__(self, index):
        return Squares(self.number, self.side)[index]


@dataclasses.dataclass(kw_only=True)
class SquaresConfig(SourceConfig):
    ignored: ClassVar = ("root",)

    number: int = 6
    side: int = ranged(32, least=1)

    def open(self, split, data):
        return Squares(self.number if split == "train" else 2, self.side)

    def faults(self, path):
        if self.side < 16:
            yield f"{path}side={self.side} must be at least 16."

    def data_faults(self, data, name):
        if data.train_split:
            yield f"data.sources.{name} has no splits."


def own_config(**fields):
    data = DataConfig(
        dataset="squares",
        sources={"squares": SquaresConfig(**fields)},
        train_short_sides=(),
        crop_short_sides=(),
        flip=False,
        train_buckets=((32, 32),),
        val_buckets=((32, 32),),
    )
    return Config(data=data, model=ModelConfig(num_classes=1))


def test_a_data_set_of_ones_own_is_opened_and_fills_batches():
    config = check(own_config())
    train, val = open_splits(config)
    assert (len(train), len(val)) == (6, 2)
    assert not train.faults.errors, "it gets an empty record of faults"
    assert find_layout(config.data) is None
    plan = TrainPlan(train, config.data, 3, seed=0)
    (first, second) = (next(batches(plan, train, 3, config.data, start=step)) for step in (0, 1))
    assert sorted([*first.info.image_ids, *second.info.image_ids]) == list(range(100, 106))
    for image, image_id in zip(first.inputs.images, first.info.image_ids, strict=True):
        np.testing.assert_array_equal(image, train[image_id - 100].image)


@pytest.mark.parametrize(
    ("fields", "data", "words"),
    [
        ({"side": 8}, {}, "data.sources.squares.side=8 must be at least 16."),
        ({"side": 0}, {}, "data.sources.squares.side=0 is out of range"),
        ({}, {"train_split": "x"}, "data.sources.squares has no splits."),
        ({}, {"root": "x"}, "data.root='x' has no effect with data.dataset='squares'"),
    ],
)
def test_the_checks_of_its_class_are_made(fields, data, words):
    config = own_config(**fields)
    for name, value in data.items():
        setattr(config.data, name, value)
    with pytest.raises(ConfigError) as error:
        check(config)
    (sentence,) = str(error.value).splitlines()
    assert sentence.startswith(words)


def test_what_a_data_set_lacks_is_named(monkeypatch):
    monkeypatch.delattr(Squares, "objects")
    monkeypatch.delattr(Squares, "max_objects")
    with pytest.raises(DataError, match=r"data\.sources\['squares'\].*Squares, which has no max_objects, objects"):
        open_source(own_config(), "train")


def test_a_data_set_that_takes_no_faults_must_have_them(monkeypatch):
    monkeypatch.setattr(SquaresConfig, "open", lambda *_: Frozen(2, 32))
    with pytest.raises(DataError, match=r"a Frozen, which has no faults.*give it faults="):
        open_source(own_config(), "train")


def test_an_entry_that_is_no_configuration_of_a_data_set_is_refused():
    config = own_config()
    config.data.sources["squares"] = Squares
    with pytest.raises(ConfigError, match=r"data\.sources holds 'squares'.*must be of class SourceConfig"):
        check(config)


@dataclasses.dataclass(kw_only=True)
class RenamedCoco(CocoFiles):
    """COCO's folder below another one, whose presence is what it is recognised by."""

    wanted: ClassVar = "a folder called packed"

    def recognise(self, root):
        return super().recognise(root / "packed") if (root / "packed").is_dir() else None


def test_a_kind_of_folder_of_ones_own_is_recognised(tmp_path, rng):
    shapes = ShapesConfig(train_images=4, val_images=2, min_size=20, max_size=30, seed=int(rng.integers(2**31)))
    write_coco(shapes, tmp_path / "packed")
    data = DataConfig(root=str(tmp_path), sources={"packed": RenamedCoco()})
    assert find_layout(data).kind == "packed"
    train, val = open_splits(Config(data=data))
    assert (len(train), len(val)) == (4, 2)
    shutil.rmtree(tmp_path / "packed")
    with pytest.raises(DataError, match=r"it must have .*a folder called packed"):
        find_layout(data)
    with pytest.raises(DataError, match=r"data\.dataset=packed needs a folder called packed, which .* does not"):
        find_layout(dataclasses.replace(data, dataset="packed"))
