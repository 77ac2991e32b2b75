"""Flips, resizes and crops of an image and its boxes (DETR, section 4 and appendix A.4).

A transform has two halves: a `Geometry`, which follows from the image's size and random numbers without a
look at the pixels, so that the final size is known when batches are planned; and `apply`, which carries it out.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from detr_jax.config import DataConfig
from detr_jax.data.source import Objects

DRAWS = 8  # random numbers in [0, 1) that one training geometry takes


class Crop(NamedTuple):
    """A rectangle in pixels of the image as it is when it is cropped."""

    top: int
    left: int
    height: int
    width: int


class Geometry(NamedTuple):
    """In this order: flip left to right, resize for the crop, crop, resize. Sizes are (height, width) in pixels."""

    flip: bool
    crop_from: tuple[int, int] | None
    crop: Crop | None
    size: tuple[int, int]


def resized(size: tuple[int, int], short_side: int, max_long_side: int | None = None) -> tuple[int, int]:
    """The (height, width) to which an image is resized so that its shorter side is ``short_side``.

    Where the long side would pass ``max_long_side``, the short side is reduced, and **rounded first**; the long
    side, truncated, can so pass the limit (200 x 640 gives 417 x 1334), as in the original: by some pixels at
    common aspects, by more where the short side is only a few pixels.
    """
    short, long = min(size), max(size)
    if max_long_side is not None and long / short * short_side > max_long_side:
        short_side = max(1, round(max_long_side * short / long))
    if short == short_side:
        return size
    other = int(short_side * long / short)
    return (short_side, other) if size[0] < size[1] else (other, short_side)


def train_geometry(size: tuple[int, int], draws: np.ndarray, config: DataConfig) -> Geometry:
    """The augmentation of the paper: flip, then evenly resize, or resize, crop and resize.

    Args:
      size: (height, width) of the image in pixels.
      draws: [DRAWS] random numbers in [0, 1); they alone decide.
      config: the short sides, the crop's limits and whether to flip.
    """
    flip_draw, branch_draw, side_draw, crop_side_draw, width_draw, height_draw, top_draw, left_draw = draws
    flip = config.flip and bool(flip_draw < 0.5)
    crop_from = crop = None
    if config.crop_short_sides and branch_draw >= 0.5:
        crop_from = resized(size, _choose(config.crop_short_sides, crop_side_draw))
        height, width = (
            _integer(config.crop_min, min(side, config.crop_max), draw)
            for side, draw in zip(crop_from, (height_draw, width_draw), strict=True)
        )
        top = _integer(0, crop_from[0] - height, top_draw)
        left = _integer(0, crop_from[1] - width, left_draw)
        crop = Crop(top, left, height, width)
        size = (height, width)
    if config.train_short_sides:
        size = resized(size, _choose(config.train_short_sides, side_draw), config.max_long_side)
    return Geometry(flip, crop_from, crop, size)


def val_geometry(size: tuple[int, int], config: DataConfig) -> Geometry:
    """Resizing to the validation size."""
    if config.val_short_side:
        size = resized(size, config.val_short_side, config.max_long_side)
    return Geometry(False, None, None, size)


def largest_sizes(size: tuple[int, int], config: DataConfig) -> list[tuple[int, int]]:
    """Sizes (height, width) that bound all training geometries of an image of this size, one an orientation or branch.

    Canvases that hold these hold every augmentation of the image.
    """
    if not config.train_short_sides:
        return [size, (config.crop_max, config.crop_max)] if config.crop_short_sides else [size]
    short = max(config.train_short_sides)
    largest = [resized(size, short, config.max_long_side)]
    if config.crop_short_sides:
        aspect = config.crop_max / config.crop_min
        # where the limit binds, the rounded short side is up to half a pixel too long, and the long side follows it
        long = int(min(short * aspect, config.max_long_side + 0.5 * aspect))
        largest += [(short, max(short, long)), (max(short, long), short)]
    return largest


def apply(geometry: Geometry, image: np.ndarray, objects: Objects) -> tuple[np.ndarray, Objects]:
    """Carries a geometry out.

    Args:
      image: [H, W, 3] uint8.
      objects: boxes in pixels of the image.

    Returns:
      The new image [h, w, 3] uint8, and its objects: boxes in its own pixels, clipped by a crop; those that the
      crop left without area are gone.
    """
    picture = Image.fromarray(image)
    boxes, labels = objects.boxes.astype(np.float32), objects.labels
    if geometry.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x0, y0, x1, y1 = boxes.T
        boxes = np.stack([picture.width - x1, y0, picture.width - x0, y1], axis=1)
    if geometry.crop is not None and geometry.crop_from is not None:
        picture, boxes = _resize(picture, boxes, geometry.crop_from)
        top, left, height, width = geometry.crop
        picture = picture.crop((left, top, left + width, top + height))
        corner, limit = np.array([left, top] * 2, np.float32), np.array([width, height] * 2, np.float32)
        boxes = np.clip(boxes - corner, 0, limit)
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, labels = boxes[kept], labels[kept]
    picture, boxes = _resize(picture, boxes, geometry.size)
    return np.asarray(picture), Objects(boxes, labels)


def _resize(picture: Image.Image, boxes: np.ndarray, size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    height, width = size
    scale = np.array([width / picture.width, height / picture.height] * 2, np.float32)
    if (picture.height, picture.width) != size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return picture, boxes * scale


def _choose(values: tuple[int, ...], draw: float) -> int:
    return values[_integer(0, len(values) - 1, draw)]


def _integer(low: int, high: int, draw: float) -> int:
    """An integer from low to high, both included, from a number in [0, 1)."""
    return low + int(draw * (high - low + 1))
