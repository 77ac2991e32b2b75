"""Flips, resizes and crops of an image and its boxes (DETR, section 4 and appendix A.4).

A `Geometry` depends only on the image's size and on random numbers, not on the pixels. The final size is therefore
known when batches are planned. `transform_picture` and `transform_objects` apply it to the pixels and the objects.
Geometries are computed for all images of a data set at once (`Geometries`).
"""

from dataclasses import dataclass
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
    """Four operations in this order: flip left to right, resize for the crop, crop, resize.

    Sizes are (height, width) in pixels.
    """

    flip: bool
    crop_from: tuple[int, int] | None
    crop: Crop | None
    size: tuple[int, int]


@dataclass(frozen=True)
class Geometries:
    """The geometries of ``n`` images as arrays. An index gives the `Geometry` of one image."""

    flip: np.ndarray
    """[n] bool."""
    crop_from: np.ndarray
    """[n, 2] int32, (height, width) in pixels. Zeros for an image without a crop."""
    crop: np.ndarray
    """[n, 4] int32, (top, left, height, width) in pixels. Zeros for an image without a crop."""
    size: np.ndarray
    """[n, 2] int32, (height, width) in pixels."""

    def __len__(self) -> int:
        return len(self.size)

    def __getitem__(self, index: int) -> Geometry:
        height, width = self.size[index].tolist()
        if not self.crop_from[index, 0]:
            return Geometry(bool(self.flip[index]), None, None, (height, width))
        whole_height, whole_width = self.crop_from[index].tolist()
        crop = Crop(*self.crop[index].tolist())
        return Geometry(bool(self.flip[index]), (whole_height, whole_width), crop, (height, width))


def resized(
    sizes: np.ndarray, short_sides: np.ndarray | int, max_long_side: int | None = None, rounding: str = "original"
) -> np.ndarray:
    """The sizes to which images are resized so that their shorter sides are ``short_sides``.

    If the long side would exceed ``max_long_side``, the short side is reduced. With the rounding "original", the short
    side is **rounded first**, and the long side is computed from it and truncated. The long side can then exceed the
    limit: 200 x 640 gives 417 x 1334. It exceeds the limit by a few pixels at common aspect ratios, and by more if the
    short side has only a few pixels. "transformers" computes the long side from the exact short side and truncates it
    (417 x 1333). "nearest" and "down" round both exact sides.

    Args:
      sizes: [..., 2] int, (height, width) in pixels.
      short_sides: [...] int in pixels, or one number for all images.
      max_long_side: in pixels. None: no limit.
      rounding: a value of ``data.resize_rounding``.

    Returns:
      [..., 2] int, (height, width) in pixels.
    """
    short, long = sizes.min(axis=-1), sizes.max(axis=-1)
    if rounding in ("nearest", "down"):
        scale = np.minimum(short_sides / short, np.inf if max_long_side is None else max_long_side / long)
        return np.maximum(1, (sizes * scale[..., None] + 0.5 * (rounding == "nearest")).astype(np.int64))
    exact = short_sides
    if max_long_side is not None:
        reduced = max_long_side * short / long
        passes = long / short * short_sides > max_long_side
        exact = np.where(passes, reduced, short_sides)
        short_sides = np.where(passes, np.maximum(1, np.rint(reduced).astype(np.int64)), short_sides)
    long_sides = ((exact if rounding == "transformers" else short_sides) * long / short).astype(np.int64)
    long_sides = np.where(short_sides == short, long, long_sides)  # an image whose short side is right keeps its size
    new_short, new_long = np.broadcast_arrays(short_sides, long_sides)
    landscape = sizes[..., 0] < sizes[..., 1]
    return np.stack([np.where(landscape, new_short, new_long), np.where(landscape, new_long, new_short)], axis=-1)


def train_geometries(sizes: np.ndarray, draws: np.ndarray, config: DataConfig) -> Geometries:
    """The augmentation of the paper. Dimension: ``n`` images.

    An image is flipped with probability 1/2. With equal probability, it is then either resized, or resized, cropped and
    resized again.

    Args:
      sizes: [n, 2] int, (height, width) of the images in pixels.
      draws: [n, DRAWS] random numbers in [0, 1). Together with the sizes, they determine the result.
      config: the short sides, the crop's limits and whether to flip.
    """
    flip_draw, branch_draw, side_draw, crop_side_draw, width_draw, height_draw, top_draw, left_draw = draws.T
    sizes = np.asarray(sizes, np.int64)
    whole, crop = np.zeros_like(sizes), np.zeros((len(sizes), 4), np.int64)
    if config.crop_short_sides:
        short_sides = _choose(config.crop_short_sides, crop_side_draw)
        whole = resized(sizes, short_sides, rounding=config.resize_rounding)
        height, width = (
            _integers(config.crop_min, np.minimum(side, config.crop_max), draw)
            for side, draw in zip(whole.T, (height_draw, width_draw), strict=True)
        )
        top = _integers(0, whole[:, 0] - height, top_draw)
        left = _integers(0, whole[:, 1] - width, left_draw)
        cropped = branch_draw[:, None] >= 0.5
        whole, crop = np.where(cropped, whole, 0), np.where(cropped, np.stack([top, left, height, width], axis=1), 0)
        sizes = np.where(cropped, crop[:, 2:], sizes)
    if config.train_short_sides:
        sizes = _resized_to(_choose(config.train_short_sides, side_draw), sizes, config)
    flip = (flip_draw < 0.5) & config.flip
    return Geometries(flip, whole.astype(np.int32), crop.astype(np.int32), sizes.astype(np.int32))


def _resized_to(short_sides: np.ndarray | int, sizes: np.ndarray, config: DataConfig) -> np.ndarray:
    return resized(sizes, short_sides, config.max_long_side, config.resize_rounding)


def val_geometries(sizes: np.ndarray, config: DataConfig) -> Geometries:
    """The geometries that resize images for validation.

    Args:
      sizes: [n, 2] int, (height, width) of the images in pixels.
      config: the short side and its limit.
    """
    sizes = np.asarray(sizes, np.int64)
    if config.val_short_side:
        sizes = _resized_to(config.val_short_side, sizes, config)
    number = len(sizes)
    none, no_crop = np.zeros((number, 2), np.int32), np.zeros((number, 4), np.int32)
    return Geometries(np.zeros(number, bool), none, no_crop, sizes.astype(np.int32))


def val_geometry(size: tuple[int, int], config: DataConfig) -> Geometry:
    """`val_geometries` of one image of this (height, width) in pixels."""
    return val_geometries(np.array([size]), config)[0]


def largest_sizes(sizes: np.ndarray, config: DataConfig) -> np.ndarray:
    """Upper bounds of the sizes of augmented training images, one per orientation or branch of the augmentation.

    Buckets that hold these sizes hold every augmented image. Dimensions: ``n`` images, ``k`` bounds.

    Args:
      sizes: [n, 2] int, (height, width) of the images in pixels.
      config: as for `train_geometries`.

    Returns:
      [n, k, 2] int, (height, width) in pixels.
    """
    sizes = np.asarray(sizes, np.int64)
    bounds: list[tuple[int, int]] = []
    if not config.train_short_sides:
        if config.crop_short_sides:
            bounds = [(config.crop_max, config.crop_max)]
    else:
        short = max(config.train_short_sides)
        sizes = _resized_to(short, sizes, config)
        if config.crop_short_sides:
            aspect = config.crop_max / config.crop_min
            # If the limit applies, the rounded short side is up to half a pixel too long. The long side grows with it.
            rounded_up = 0.5 * (config.resize_rounding == "nearest")
            long = max(short, int(min(short * aspect, config.max_long_side + 0.5 * aspect) + rounded_up))
            bounds = [(short, long), (long, short)]
    return np.stack([sizes, *(np.broadcast_to(bound, sizes.shape) for bound in bounds)], axis=1)


def first_size(geometry: Geometry) -> tuple[int, int]:
    """The (height, width) in pixels to which a geometry first resizes the whole image."""
    return geometry.crop_from or geometry.size


def transform_picture(geometry: Geometry, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Applies a geometry to the pixels.

    A crop is resized without the rest of the image. The result differs by one or two levels from resizing first and
    then cropping.

    Args:
      picture: the image. It may be decoded to a smaller scale (`detr_jax.data.images.decode`).
      size: (height, width) of the image at full scale in pixels.
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
    box = (box[0], box[1], min(box[2], picture.width), min(box[3], picture.height))  # rounding can exceed the picture
    return picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)  # returns a copy if nothing changes


def transform_objects(geometry: Geometry, objects: Objects, size: tuple[int, int]) -> Objects:
    """Applies a geometry to the objects. A crop clips boxes, and drops boxes that have no area left.

    Args:
      objects: boxes in pixels of the image.
      size: (height, width) of the image in pixels.

    Returns:
      The objects with boxes in pixels of the new image.
    """
    boxes, labels, masks = objects.boxes.astype(np.float32), objects.labels, objects.masks
    if masks is not None:
        masks = masks.changed(*shown_pixels(geometry, size))
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
        masks = None if masks is None else masks.select(kept)
    return Objects(boxes * _scale(size, geometry.size), labels, masks)


def shown_pixels(geometry: Geometry, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of the image that each row and column shows after a geometry.

    A resize takes the nearest pixel as PyTorch does, ``floor(i * before / after)``.

    Args:
      geometry: the changes.
      size: (height, width) of the image in pixels.

    Returns:
      Rows [geometry.size[0]] and columns [geometry.size[1]], int64.
    """
    rows, columns = map(np.arange, size)
    if geometry.flip:
        columns = columns[::-1]
    if geometry.crop is not None and geometry.crop_from is not None:
        rows, columns = (_nearest(x, side) for x, side in zip((rows, columns), geometry.crop_from, strict=True))
        top, left, height, width = geometry.crop
        rows, columns = rows[top : top + height], columns[left : left + width]
    rows, columns = (_nearest(x, side) for x, side in zip((rows, columns), geometry.size, strict=True))
    return rows, columns


def _nearest(shown: np.ndarray, side: int) -> np.ndarray:
    """A line of pixels, resized to ``side`` pixels."""
    found: np.ndarray = shown[np.arange(side) * len(shown) // side]
    return found


def _scale(size: tuple[int, int], new_size: tuple[int, int]) -> np.ndarray:
    """The factors for x and y of both corners."""
    return np.array([new_size[1] / size[1], new_size[0] / size[0]] * 2, np.float32)


def _choose(values: tuple[int, ...], draws: np.ndarray) -> np.ndarray:
    return np.array(values)[_integers(0, len(values) - 1, draws)]


def _integers(low: int, high: np.ndarray | int, draws: np.ndarray) -> np.ndarray:
    """Integers from low to high, both included, from numbers in [0, 1)."""
    return low + (draws * (high - low + 1)).astype(np.int64)
