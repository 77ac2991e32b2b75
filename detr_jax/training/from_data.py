"""Image sizes and the number of queries that suit a data set, for a training from scratch."""

import dataclasses
from typing import Any

import numpy as np

from detr_jax.config import IMAGE_SIZES, DataConfig
from detr_jax.data import Source

SAMPLE = 2_000
"""Images whose objects are read. They are spread over the data set."""
OBJECT_SIDE = 24
"""Pixels that the side of a small object gets: 3 cells of a feature map with stride 8."""
SHORT_SIDES = (192, 448)
"""The least and the greatest short side in pixels. A smaller one loses the detail of objects, a larger one is slow."""
LEAST_QUERIES = 20
QUERIES_PER_OBJECT = 2
"""Queries for each object of the fullest image. Some queries learn to find nothing."""


def sizes_for(data: DataConfig, source: Source) -> DataConfig:
    """Sets the image sizes from the images and objects of a data set.

    A small object (nine of ten are larger) gets a side of `OBJECT_SIDE` pixels, within the bounds `SHORT_SIDES`. At
    least half of the images are not enlarged for validation. A ``val_short_side`` that is not the default is kept, and
    so is every other size that is not the default.

    Args:
      data: the configuration of the data.
      source: the training images.

    Returns:
      ``data`` with other ``train_short_sides``, ``crop_short_sides``, ``crop_min``, ``crop_max``, ``val_short_side``
      and ``max_long_side``.
    """
    short = data.val_short_side
    if short == DataConfig().val_short_side or not short:
        short = _short_side(source)

    def times(factor: float) -> int:
        return round(short * factor)

    sizes: dict[str, Any] = {
        "train_short_sides": tuple(map(times, (0.7, 0.8, 0.9, 1.0, 1.1))),
        "crop_short_sides": tuple(map(times, (1.2, 1.5))),
        "crop_min": times(0.6),
        "crop_max": times(1.1),
        "val_short_side": short,
        "max_long_side": times(4 / 3),
    }
    return with_open_sizes(data, sizes)


def image_sizes(data: DataConfig) -> dict[str, Any]:
    """The fields of `IMAGE_SIZES` with their values."""
    return {name: getattr(data, name) for name in IMAGE_SIZES}


def with_open_sizes(data: DataConfig, sizes: dict[str, Any]) -> DataConfig:
    """``data`` with these image sizes, except for those that the user has set, which differ from the default."""
    default = DataConfig()
    open_ = {name: value for name, value in sizes.items() if getattr(data, name) == getattr(default, name)}
    return dataclasses.replace(data, **open_)


def queries_for(source: Source) -> int:
    """The number of queries that suits the fullest training image, at least `LEAST_QUERIES`."""
    return max(LEAST_QUERIES, QUERIES_PER_OBJECT * source.max_objects)


def _short_side(source: Source) -> int:
    """The short side of images in pixels, a multiple of 16."""
    objects = _relative_sides(source)
    wanted = OBJECT_SIDE / np.quantile(objects, 0.1) if objects.size else SHORT_SIDES[0]
    usual = np.median(np.asarray(source.sizes).min(axis=1))
    return max(1, int(min(np.clip(wanted, *SHORT_SIDES), usual) // 16)) * 16


def _relative_sides(source: Source) -> np.ndarray:
    """[objects] float, square roots of the areas of boxes over the short sides of their images."""
    chosen = np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(int))
    sides = []
    for index in chosen:
        boxes = source.objects(int(index)).boxes
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        sides.append(np.sqrt(width * height) / min(source.sizes[index]))
    return np.concatenate(sides)
