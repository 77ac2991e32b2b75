"""Image sizes and queries that come from the data."""

import dataclasses

import numpy as np
import pytest

from detr_jax.config import IMAGE_SIZES, Config, DataConfig, ShapesConfig
from detr_jax.data.shapes import ShapesDataset, write_coco
from detr_jax.data.source import Objects
from detr_jax.testing import tiny_config, tiny_deformable_config
from detr_jax.training.from_data import queries_for, sizes_for
from detr_jax.training.loop import train
from detr_jax.training.resolve import resolve_from_data
from detr_jax.workdir import read_run_config


class _Drawn:
    """Images of one size, with square objects of random sides."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], sides: tuple[float, float], objects: int):
        self.sizes = np.tile(size, (30, 1))
        self.max_objects = objects
        self._sides = rng.uniform(*sides, (30, objects)) * min(size)

    def __len__(self) -> int:
        return len(self.sizes)

    def objects(self, index: int) -> Objects:
        side = self._sides[index, :, None]
        corner = np.zeros((len(side), 2))
        return Objects(np.concatenate([corner, corner + side], axis=1), np.zeros(len(side), np.int32))

    def small_side(self, short: int) -> float:
        """The side in pixels that nine of ten objects exceed, on images of this short side."""
        return float(np.quantile(self._sides, 0.1)) / min(self.sizes[0]) * short


def test_small_objects_get_24_pixels_within_the_limits(rng):
    small = _Drawn(rng, (900, 1200), (0.06, 0.2), 7)
    data = sizes_for(DataConfig(), small)
    assert 192 < data.val_short_side < 448
    assert small.small_side(data.val_short_side) == pytest.approx(24, abs=1.5)
    assert sizes_for(DataConfig(), _Drawn(rng, (900, 1200), (0.5, 0.9), 2)).val_short_side == 192
    assert sizes_for(DataConfig(), _Drawn(rng, (900, 1200), (0.01, 0.02), 2)).val_short_side == 448
    assert sizes_for(DataConfig(), _Drawn(rng, (1200, 900), (0.01, 0.02), 0)).val_short_side == 192


def test_images_are_not_enlarged(rng):
    side = int(rng.integers(48, 150))
    data = sizes_for(DataConfig(), _Drawn(rng, (side, side + 30), (0.05, 0.1), 2))
    assert data.val_short_side == max(1, side // 16) * 16
    assert data.max_long_side == round(data.val_short_side * 4 / 3)
    assert data.crop_min <= min(data.crop_short_sides)


def test_sizes_that_were_set_stay_and_the_others_follow_the_short_side(rng):
    source = _Drawn(rng, (900, 1200), (0.06, 0.5), 7)
    data = sizes_for(DataConfig(val_short_side=100, max_long_side=500), source)
    assert (data.val_short_side, data.max_long_side) == (100, 500)
    assert data.train_short_sides == (70, 80, 90, 100, 110)


def test_the_queries_follow_the_fullest_image(rng):
    few, many = (_Drawn(rng, (90, 90), (0.1, 0.2), number) for number in (3, 170))
    assert queries_for(few) == 20
    assert queries_for(many) == 340


def _open_config() -> Config:
    config = tiny_config()
    config.model = dataclasses.replace(config.model, num_queries=0)
    defaults = DataConfig()
    for name in IMAGE_SIZES:
        setattr(config.data, name, getattr(defaults, name))
    config.data.train_buckets = config.data.val_buckets = ()
    config.data.sizes_from_data = True
    return config


def test_only_open_fields_come_from_the_data(rng):
    source = ShapesDataset(ShapesConfig(), "val")
    config = _open_config()
    resolved = resolve_from_data(config, None, source, source)
    assert resolved.model.num_queries == 20
    assert resolved.data.val_short_side < 64
    config.model.num_queries, config.data.sizes_from_data = 7, False
    assert resolve_from_data(config, None, source, source) == config


def test_there_is_room_for_the_detections_of_the_fullest_image(rng):
    config = tiny_deformable_config()
    full = _Drawn(rng, (90, 90), (0.1, 0.2), 130)
    full.categories = {0: "square"}
    assert resolve_from_data(config, None, full, full).model.max_detections_per_image == 130
    few = ShapesDataset(ShapesConfig(), "val")
    assert resolve_from_data(config, None, few, few).model.max_detections_per_image == 100


def test_a_resumed_run_keeps_its_sizes(one_device, tmp_path):
    write_coco(ShapesConfig(train_images=8, val_images=2, min_size=40, max_size=44), tmp_path / "data")
    config = _open_config()
    config.data.dataset, config.data.root = "coco", str(tmp_path / "data")
    config.training.steps, config.evaluation.every_epochs = 1, 0
    train(config, tmp_path / "run", mesh=one_device)
    first = read_run_config(tmp_path / "run")
    assert first.data.val_short_side < 64
    assert first.model.num_queries == 20
    larger = ShapesDataset(ShapesConfig(min_size=90, max_size=99), "val")
    resumed = resolve_from_data(dataclasses.replace(config, model=first.model), first, larger, larger)
    assert [getattr(resumed.data, name) for name in IMAGE_SIZES] == [getattr(first.data, name) for name in IMAGE_SIZES]
    config.data.max_long_side = 99  # the user's own size is not lost
    assert resolve_from_data(config, first, larger, larger).data.max_long_side == 99
    config.data.max_long_side = DataConfig().max_long_side
    config.training.steps = 2
    train(config, tmp_path / "run", mesh=one_device)
    assert read_run_config(tmp_path / "run").data == first.data
