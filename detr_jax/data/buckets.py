"""The canvases of a data set: few shapes, one compilation each, that together waste little on padding."""

from collections.abc import Sequence

import numpy as np

from detr_jax.config import DataConfig
from detr_jax.data.source import Source
from detr_jax.data.transforms import DRAWS, largest_sizes, train_geometries, val_geometries

Bucket = tuple[int, int]
"""(height, width) of a canvas in pixels."""

_GEOMETRIES = 20_000  # training sizes drawn to choose canvases from
_RESTARTS = 50  # of the search, fewer where sizes are many
_TABLE_ENTRIES = 4 * 10**6  # of the table of canvases against sizes that the search works on


def by_area(bucket: Bucket) -> tuple[int, Bucket]:
    """The key that sorts canvases by area, those of one area by their height."""
    return bucket[0] * bucket[1], bucket


def choose_buckets(
    sizes: np.ndarray, count: int, stride: int = 32, must_hold: np.ndarray | Sequence[tuple[int, int]] = ()
) -> list[Bucket]:
    """Canvases that hold all sizes with little padding.

    The sum over images of the smallest canvas that holds each is made small: canvases are added one by one, each the
    best beside those before; then each in turn is replaced by the best there is, until nothing improves; and all that
    is repeated with some of them exchanged at random. The same arguments give the same canvases.

    Args:
      sizes: [n, 2] int, (height, width) of the images in pixels; n is at least 1.
      count: the most canvases to choose.
      stride: each side of a canvas is a multiple of this.
      must_hold: further sizes that some canvas must hold, however rare.

    Returns:
      At most ``count`` (height, width), by area.
    """
    wanted = np.concatenate([np.reshape(sizes, (-1, 2)), np.reshape(must_hold, (-1, 2)).astype(np.int64)])
    cells, index = _distinct(-(-wanted // stride))  # distinct sizes in strides, rounded up
    weights = np.bincount(index[: len(sizes)], minlength=len(cells)) + 1e-6

    for step in range(1, int(cells.max()) + 1):  # a coarser grid where sizes are many
        coarse, member = _distinct(-(-cells // step) * step)
        sides = [np.unique(coarse[:, axis]) for axis in (0, 1)]
        if len(sides[0]) * len(sides[1]) * len(coarse) <= _TABLE_ENTRIES:
            break
    candidates = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
    holds = (candidates[:, None] >= coarse).all(axis=-1)  # [candidates, cells]
    area = candidates.prod(axis=1).astype(np.float64)
    padded = np.where(holds, area[:, None], 1e9 * area.max())  # a size that no canvas holds outweighs all else

    chosen = _search(padded, np.bincount(member, weights), count)
    taken = padded[chosen].argmin(axis=0)[member]
    tight = {tuple(cells[taken == k].max(axis=0).tolist()) for k in np.unique(taken)}
    return sorted(((h * stride, w * stride) for h, w in tight), key=by_area)


def _distinct(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of [n, 2] int, sorted, and for each row the index of its equal, [n] int."""
    keys, index = np.unique(sizes[:, 0] << 32 | sizes[:, 1], return_inverse=True)
    return np.stack([keys >> 32, keys & 2**32 - 1], axis=1), index


def _search(padded: np.ndarray, weights: np.ndarray, count: int) -> list[int]:
    """The candidates of the least cost, at most ``count``. ``padded``: [candidates, cells], ``weights``: [cells]."""

    def cost(held: np.ndarray) -> float:
        return float(held @ weights)

    def best_beside(held: np.ndarray) -> int:
        return int((np.minimum(padded, held) @ weights).argmin())

    def improved(chosen: list[int]) -> list[int]:
        chosen, before = list(chosen), np.inf
        while (now := cost(padded[chosen].min(axis=0))) < before:
            before = now
            for k in range(len(chosen)):
                others = chosen[:k] + chosen[k + 1 :]
                chosen[k] = best_beside(padded[others].min(axis=0, initial=np.inf))
        return chosen

    chosen: list[int] = []
    held = np.full(padded.shape[1], np.inf)
    while len(chosen) < count:
        k = best_beside(held)
        if chosen and not (padded[k] < held).any():
            break  # every size has its own canvas
        chosen.append(k)
        held = np.minimum(held, padded[k])
    chosen = improved(chosen)

    rng = np.random.default_rng(0)
    restarts = min(_RESTARTS, 10**7 // padded.size) if len(chosen) == count > 1 else 0
    for _ in range(restarts):
        exchanged = rng.choice(count, rng.integers(1, min(4, count), endpoint=True), replace=False)
        other = list(chosen)
        for k in exchanged:
            other[k] = int(rng.integers(len(padded)))
        other = improved(other)
        if cost(padded[other].min(axis=0)) < cost(padded[chosen].min(axis=0)):
            chosen = other
    return chosen


def bucket_for(size: tuple[int, int], buckets: Sequence[Bucket]) -> Bucket | None:
    """The bucket of the smallest area that holds an image of this (height, width); None where none does."""
    fitting = [bucket for bucket in buckets if bucket[0] >= size[0] and bucket[1] >= size[1]]
    return min(fitting, key=by_area, default=None)


def useful_share(sizes: np.ndarray, buckets: Sequence[Bucket]) -> float:
    """Pixels of images over pixels of their canvases, with each image on the smallest canvas that holds it.

    Args:
      sizes: [n, 2] int, (height, width) in pixels; some bucket holds each.
      buckets: canvases (height, width) in pixels.
    """
    canvases = np.asarray(buckets)
    holds = (canvases >= np.asarray(sizes)[:, None]).all(axis=-1)
    padded = np.where(holds, canvases.prod(axis=1).astype(np.float64), np.inf).min(axis=1)
    return float(np.prod(sizes, axis=1).sum() / padded.sum())


def train_sizes(source: Source, config: DataConfig) -> np.ndarray:
    """[n, 2] int, (height, width) in pixels of seeded training geometries, at least one an image while they are few."""
    rng = np.random.default_rng(0)
    images = np.tile(rng.permutation(len(source)), -(-_GEOMETRIES // len(source)))[:_GEOMETRIES]
    draws = rng.random((len(images), DRAWS))
    return train_geometries(source.sizes[images], draws, config).size


def val_sizes(source: Source, config: DataConfig) -> np.ndarray:
    """[images, 2] int, (height, width) in pixels of all validation images after resizing."""
    return val_geometries(source.sizes, config).size


def train_buckets(source: Source, config: DataConfig, stride: int) -> list[Bucket]:
    """``config.train_buckets``, or where that is empty, ``config.num_train_buckets`` chosen from the data."""
    if config.train_buckets:
        return sorted(set(config.train_buckets), key=by_area)
    return choose_buckets(
        train_sizes(source, config), config.num_train_buckets, stride, largest_sizes(source.sizes, config)
    )


def val_buckets(source: Source, config: DataConfig, stride: int) -> list[Bucket]:
    """``config.val_buckets``, or where that is empty, ``config.num_val_buckets`` chosen from the data."""
    if config.val_buckets:
        return sorted(set(config.val_buckets), key=by_area)
    return choose_buckets(val_sizes(source, config), config.num_val_buckets, stride)
