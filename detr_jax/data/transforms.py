"""Flips, resizes and crops of an image and its boxes (DETR, section 4 and appendix A.4).

A transform has two halves: a `Geometry`, which follows from the image's size and random numbers without a
look at the pixels, so that the final size is known when batches are planned; and `apply`, which carries it out.
"""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from detr_jax.config import DataConfig
from detr_jax.data.images import covered
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


def resized(
    size: tuple[int, int], short_side: int, max_long_side: int | None = None, rounding: str = "original"
) -> tuple[int, int]:
    """The (height, width) to which an image is resized so that its shorter side is ``short_side``.

    If the long side would pass ``max_long_side``, the short side is reduced. With the rounding "original" it is
    **rounded first**; the long side, truncated, can so pass the limit (200 x 640 gives 417 x 1334): by some pixels at
    common aspects, by more if the short side is only a few pixels. "transformers" truncates what the exact short side
    gives (417 x 1333); "nearest" and "down" round both exact sides.
    """
    short, long = min(size), max(size)
    if rounding in ("nearest", "down"):
        scale = min(short_side / short, math.inf if max_long_side is None else max_long_side / long)
        height, width = (max(1, int(side * scale + 0.5 * (rounding == "nearest"))) for side in size)
        return height, width
    exact: float = short_side
    if max_long_side is not None and long / short * short_side > max_long_side:
        exact = max_long_side * short / long
        short_side = max(1, round(exact))
    if short == short_side:
        return size
    other = int((exact if rounding == "transformers" else short_side) * long / short)
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
        crop_from = resized(size, _choose(config.crop_short_sides, crop_side_draw), rounding=config.resize_rounding)
        height, width = (
            _integer(config.crop_min, min(side, config.crop_max), draw)
            for side, draw in zip(crop_from, (height_draw, width_draw), strict=True)
        )
        top = _integer(0, crop_from[0] - height, top_draw)
        left = _integer(0, crop_from[1] - width, left_draw)
        crop = Crop(top, left, height, width)
        size = (height, width)
    if config.train_short_sides:
        size = _resized_to(_choose(config.train_short_sides, side_draw), size, config)
    return Geometry(flip, crop_from, crop, size)


def _resized_to(short_side: int, size: tuple[int, int], config: DataConfig) -> tuple[int, int]:
    return resized(size, short_side, config.max_long_side, config.resize_rounding)


def val_geometry(size: tuple[int, int], config: DataConfig) -> Geometry:
    """Resizing to the validation size."""
    if config.val_short_side:
        size = _resized_to(config.val_short_side, size, config)
    return Geometry(False, None, None, size)


def largest_sizes(size: tuple[int, int], config: DataConfig) -> list[tuple[int, int]]:
    """Sizes (height, width) that bound all training geometries of an image of this size, one an orientation or branch.

    Canvases that hold these hold every augmentation of the image.
    """
    if not config.train_short_sides:
        return [size, (config.crop_max, config.crop_max)] if config.crop_short_sides else [size]
    short = max(config.train_short_sides)
    largest = [_resized_to(short, size, config)]
    if config.crop_short_sides:
        aspect = config.crop_max / config.crop_min
        # where the limit binds, the rounded short side is up to half a pixel too long, and the long side follows it
        rounded_up = 0.5 * (config.resize_rounding == "nearest")
        long = int(min(short * aspect, config.max_long_side + 0.5 * aspect) + rounded_up)
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
    size = image.shape[0], image.shape[1]
    picture = transform_picture(geometry, Image.fromarray(image), size)
    return np.asarray(picture), transform_objects(geometry, objects, size)


def first_size(geometry: Geometry) -> tuple[int, int]:
    """The (height, width) in pixels to which a geometry first resizes the whole image."""
    return geometry.crop_from or geometry.size


def transform_picture(geometry: Geometry, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The pixels' part of `apply`.

    A crop is resized alone, without the rest of the image: within a level or two of resizing first and cropping then.

    Args:
      picture: the image, perhaps decoded to a smaller scale (`detr_jax.data.images.decode`).
      size: (height, width) of the image itself in pixels.
    """
    height, width = covered(picture, size)
    left = 0.0
    if geometry.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        left = picture.width - width
    if geometry.crop is not None and geometry.crop_from is not None:
        crop, vertical, horizontal = geometry.crop, height / geometry.crop_from[0], width / geometry.crop_from[1]
        box = (
            left + crop.left * horizontal,
            crop.top * vertical,
            left + (crop.left + crop.width) * horizontal,
            (crop.top + crop.height) * vertical,
        )
        picture = _resize(picture, (crop.height, crop.width), box)
        height, width, left = crop.height, crop.width, 0.0
    return _resize(picture, geometry.size, (left, 0.0, left + width, height))


def _resize(picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """The part ``box`` (left, top, right, bottom) of a picture, resized to (height, width)."""
    box = (box[0], box[1], min(box[2], picture.width), min(box[3], picture.height))  # against rounding
    return picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)  # a copy where nothing changes


def transform_objects(geometry: Geometry, objects: Objects, size: tuple[int, int]) -> Objects:
    """The objects' part of `apply`; ``size`` is the image's (height, width) in pixels."""
    boxes, labels = objects.boxes.astype(np.float32), objects.labels
    if geometry.flip:
        x0, y0, x1, y1 = boxes.T
        boxes = np.stack([size[1] - x1, y0, size[1] - x0, y1], axis=1)
    if geometry.crop is not None and geometry.crop_from is not None:
        boxes = boxes * _scale(size, geometry.crop_from)
        top, left, height, width = geometry.crop
        corner, limit = np.array([left, top] * 2, np.float32), np.array([width, height] * 2, np.float32)
        boxes = np.clip(boxes - corner, 0, limit)
        kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, labels, size = boxes[kept], labels[kept], (height, width)
    return Objects(boxes * _scale(size, geometry.size), labels)


def _scale(size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """Factors of x and y of both corners."""
    return np.array([new_size[1] / size[1], new_size[0] / size[0]] * 2, np.float32)


def _choose(values: tuple[int, ...], draw: float) -> int:
    return values[_integer(0, len(values) - 1, draw)]


def _integer(low: int, high: int, draw: float) -> int:
    """An integer from low to high, both included, from a number in [0, 1)."""
    return low + int(draw * (high - low + 1))
