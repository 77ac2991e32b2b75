"""Buckets for prediction: a few fixed shapes into which an image of any size can be placed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from detr_jax.config import Config
from detr_jax.data.buckets import Bucket, bucket_for, by_area
from detr_jax.data.transforms import Geometry, transform_picture, val_geometry

_ASPECTS = (1.0, 4 / 3, 3 / 2)  # of common images, in addition to the shapes that reach the limit of the long side
_SMALLEST = 64  # the side in pixels of the smallest bucket if images are not resized


def prediction_buckets(config: Config) -> list[Bucket]:
    """The buckets for prediction, (height, width) in pixels, sorted by area. Each is compiled when it is first used.

    If ``data.val_buckets`` is set, it gives the buckets. Otherwise, images that are resized to a short side get nine
    buckets of common aspect ratios in both orientations: 1:1, 4:3, 3:2, up to the longest side, and strips of half the
    height. Images that are not resized get squares, each with twice the side of the previous one.
    """
    data, stride = config.data, config.model.stride
    limit = config.model.largest_bucket or 2**31

    def rounded(side: float) -> int:
        return min(max(1, -(-int(side) // stride)) * stride, limit)

    short, long = data.val_short_side, data.max_long_side
    if data.val_buckets:
        return sorted(set(data.val_buckets), key=by_area)
    if short:
        pairs: list[tuple[float, float]] = [(short, min(aspect * short, max(short, long))) for aspect in _ASPECTS]
        pairs += [(min(short, long), max(short, long)), (min(short, long) / 2, max(short, long))]
        landscape = [(rounded(height), rounded(width)) for height, width in pairs]
    else:
        sides = [_SMALLEST]
        while sides[-1] < long:
            sides.append(min(2 * sides[-1], long))
        landscape = [(rounded(side), rounded(side)) for side in sides]
    both = {*landscape, *((width, height) for height, width in landscape)}
    return sorted(both, key=by_area)


class Placement(NamedTuple):
    """The bucket of an image, and its size in the bucket. Sizes are (height, width) in pixels."""

    bucket: Bucket
    size: tuple[int, int]
    """The valid size: the size of the image in its bucket."""
    shrunk: bool
    """Whether the image is smaller than in validation, because it would not fit in any bucket."""


def place(size: tuple[int, int], config: Config, buckets: Sequence[Bucket]) -> Placement:
    """The smallest bucket for an image of (height, width) ``size``, after the resizing of validation.

    If the image fits in no bucket, because it is very long and thin, it is shrunk until it fits. Its aspect ratio is
    kept, except that a side never gets shorter than one pixel.
    """
    resized = val_geometry(size, config.data).size
    bucket = bucket_for(resized, buckets)
    if bucket is not None:
        return Placement(bucket, resized, False)

    def scale(bucket: Bucket) -> float:
        return min(bucket[0] / resized[0], bucket[1] / resized[1])

    best = max(buckets, key=scale)
    height, width = (min(limit, max(1, round(side * scale(best)))) for side, limit in zip(resized, best, strict=True))
    fitting = bucket_for((height, width), buckets)
    assert fitting is not None
    return Placement(fitting, (height, width), True)


def lay(picture: Image.Image, placement: Placement, bucket: np.ndarray) -> None:
    """Resizes a picture and writes it into the upper left corner of ``bucket``, [H, W, 3] uint8."""
    height, width = placement.size
    geometry = Geometry(flip=False, crop_from=None, crop=None, size=placement.size)
    bucket[:height, :width] = np.asarray(transform_picture(geometry, picture, (picture.height, picture.width)))
