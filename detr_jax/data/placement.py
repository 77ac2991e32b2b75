"""The buckets of prediction: few, known beforehand, and enough for an image of any size."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from detr_jax.config import LEARNED_CELLS, Config
from detr_jax.data.buckets import Bucket, bucket_for, by_area
from detr_jax.data.transforms import Geometry, transform_picture, val_geometry

_ASPECTS = (1.0, 4 / 3, 3 / 2)  # of common images, beside what reaches the limit of the long side
_SMALLEST = 64  # pixels of a bucket's side, where images are not resized


def prediction_buckets(config: Config) -> list[Bucket]:
    """The (height, width) in pixels on which a model predicts, by area: one compilation each, when it is first needed.

    They are ``data.val_buckets`` where those are given. Otherwise, images that are resized to a short side get buckets
    of common aspects (1:1, 4:3, 3:2, up to the longest side and strips of half the height, in both orientations), nine
    in all; images that are not resized get squares, each twice as high and wide as the one before.
    """
    data, model, stride = config.data, config.model, config.model.backbone.stride
    most = LEARNED_CELLS * stride if model.position_embedding == "learned" else 2**31

    def rounded(side: float) -> int:
        return min(max(1, -(-int(side) // stride)) * stride, most)

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
    """Where an image goes. Sizes are (height, width) in pixels."""

    bucket: Bucket
    size: tuple[int, int]
    """Of the image on the bucket."""
    shrunk: bool
    """Whether it was made smaller than in validation, because no bucket holds it so."""


def place(size: tuple[int, int], config: Config, buckets: Sequence[Bucket]) -> Placement:
    """The smallest bucket for an image of (height, width) ``size``, resized as in validation.

    Where no bucket holds it, as is so of very long and thin images, it is shrunk with its aspect kept, but to no less
    than a pixel, until one does.
    """
    resized = val_geometry(size, config.data).size
    bucket = bucket_for(resized, buckets)
    if bucket is not None:
        return Placement(bucket, resized, False)

    def scale(bucket: Bucket) -> float:
        return min(bucket[0] / resized[0], bucket[1] / resized[1])

    best = max(buckets, key=scale)
    height, width = (min(most, max(1, round(side * scale(best)))) for side, most in zip(resized, best, strict=True))
    fitting = bucket_for((height, width), buckets)
    assert fitting is not None
    return Placement(fitting, (height, width), True)


def lay(picture: Image.Image, placement: Placement, bucket: np.ndarray) -> None:
    """Resizes a picture and writes it into the upper left corner of its bucket [H, W, 3] uint8."""
    height, width = placement.size
    geometry = Geometry(flip=False, crop_from=None, crop=None, size=placement.size)
    bucket[:height, :width] = np.asarray(transform_picture(geometry, picture, (picture.height, picture.width)))
