"""Choose the buckets of a data set: padded shapes with little padding.

There are only a few of them, because each costs a compilation.
"""

from collections.abc import Sequence

import numpy as np

from detr_jax.config import DataConfig
from detr_jax.data.source import Source
from detr_jax.data.transforms import val_geometries

Bucket = tuple[int, int]
"""(height, width) of a bucket in pixels."""

_GEOMETRIES = 20_000  # random training sizes from which buckets are chosen
_RESTARTS = 50  # restarts of the search. There are fewer if the table below is large
_TABLE_ENTRIES = 4 * 10**6  # entries in the search's table of candidate buckets by image sizes


def by_area(bucket: Bucket) -> tuple[int, Bucket]:
    """The key that sorts buckets by area, and buckets of equal area by height."""
    return bucket[0] * bucket[1], bucket


def choose_buckets(
    sizes: np.ndarray, count: int, stride: int = 32, must_hold: np.ndarray | Sequence[tuple[int, int]] = ()
) -> list[Bucket]:
    """Buckets that hold all sizes with little padding.

    The search minimises the total padded area. It inserts buckets greedily, then replaces one at a time by the best
    candidate until nothing improves (coordinate descent), and repeats this after random exchanges. The random numbers
    are seeded, so the same arguments give the same buckets.

    Args:
      sizes: [n, 2] int, (height, width) of the images in pixels. n is at least 1.
      count: the largest number of buckets.
      stride: in pixels. Each side of a bucket is a multiple of the stride.
      must_hold: [m, 2] int, further sizes that must fit in some bucket, even if they are rare.

    Returns:
      At most ``count`` buckets (height, width) in pixels, sorted by area.
    """
    search = _Search(sizes, stride, must_hold)
    return search.buckets(search.best(count))


def padded_pixels(
    sizes: np.ndarray, max_count: int, stride: int = 32, must_hold: np.ndarray | Sequence[tuple[int, int]] = ()
) -> np.ndarray:
    """Mean padded pixels per image with 1, 2, ... buckets, as `choose_buckets` chooses them before random exchanges.

    Args:
      sizes: see `choose_buckets`.
      max_count: the largest number of buckets.
      stride: see `choose_buckets`.
      must_hold: see `choose_buckets`.

    Returns:
      [k] float, for 1 to ``max_count`` buckets. It ends earlier if every distinct size has its own bucket.
    """
    search = _Search(sizes, stride, must_hold)
    chosen = search.greedy(max_count)
    chosen_by_count = (search.improved(chosen[:count]) for count in range(1, len(chosen) + 1))
    return np.array([_padded_areas(sizes, search.buckets(one)).mean() for one in chosen_by_count])


class _Search:
    """The search of `choose_buckets` among the ``C`` candidate buckets of a grid. It takes the same arguments.

    A choice is a list of indices of candidates.
    """

    def __init__(self, sizes: np.ndarray, stride: int, must_hold: np.ndarray | Sequence[tuple[int, int]]):
        all_sizes = np.concatenate([np.reshape(sizes, (-1, 2)), np.reshape(must_hold, (-1, 2)).astype(np.int64)])
        cells, index = _distinct(-(-all_sizes // stride))  # distinct sizes in units of the stride, rounded up
        weights = np.bincount(index[: len(sizes)], minlength=len(cells)) + 1e-6

        for step in range(1, int(cells.max()) + 1):  # a coarser grid if there are many sizes
            coarse, member = _distinct(-(-cells // step) * step)
            sides = [np.unique(coarse[:, axis]) for axis in (0, 1)]
            if len(sides[0]) * len(sides[1]) * len(coarse) <= _TABLE_ENTRIES:
                break
        candidates = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, 2)
        holds = (candidates[:, None] >= coarse).all(axis=-1)  # [C, cells]
        area = candidates.prod(axis=1).astype(np.float64)
        self._stride, self._cells, self._member = stride, cells, member
        self._padded = np.where(holds, area[:, None], 1e9 * area.max())  # a size that does not fit outweighs all others
        self._weights = np.bincount(member, weights)

    def buckets(self, chosen: list[int]) -> list[Bucket]:
        """The chosen candidates as (height, width) in pixels, sorted by area and shrunk to the sizes that they hold."""
        taken = self._padded[chosen].argmin(axis=0)[self._member]
        tight = {tuple(self._cells[taken == k].max(axis=0).tolist()) for k in np.unique(taken)}
        return sorted(((h * self._stride, w * self._stride) for h, w in tight), key=by_area)

    def greedy(self, count: int) -> list[int]:
        """At most ``count`` candidates. Each is the best one to add to the candidates before it."""
        chosen: list[int] = []
        held = np.full(self._padded.shape[1], np.inf)
        while len(chosen) < count:
            k = self._best_next_to(held)
            if chosen and not (self._padded[k] < held).any():
                break  # every size has its own bucket
            chosen.append(k)
            held = np.minimum(held, self._padded[k])
        return chosen

    def improved(self, chosen: list[int]) -> list[int]:
        """The same number of candidates, after coordinate descent.

        Each candidate is replaced by the best one to add to the others, until nothing improves.
        """
        chosen, before = list(chosen), np.inf
        while (now := self._cost(chosen)) < before:
            before = now
            for k in range(len(chosen)):
                others = chosen[:k] + chosen[k + 1 :]
                chosen[k] = self._best_next_to(self._padded[others].min(axis=0, initial=np.inf))
        return chosen

    def best(self, count: int) -> list[int]:
        """At most ``count`` candidates: the greedy ones after coordinate descent, then the best of random restarts."""
        chosen = self.improved(self.greedy(count))
        rng = np.random.default_rng(0)
        restarts = min(_RESTARTS, 10**7 // self._padded.size) if len(chosen) == count > 1 else 0
        for _ in range(restarts):
            exchanged = rng.choice(count, rng.integers(1, min(4, count), endpoint=True), replace=False)
            other = list(chosen)
            for k in exchanged:
                other[k] = int(rng.integers(len(self._padded)))
            other = self.improved(other)
            if self._cost(other) < self._cost(chosen):
                chosen = other
        return chosen

    def _cost(self, chosen: list[int]) -> float:
        return float(self._padded[chosen].min(axis=0) @ self._weights)

    def _best_next_to(self, held: np.ndarray) -> int:
        """The best candidate to add, if the current choice pads the cells to the areas ``held``."""
        return int((np.minimum(self._padded, held) @ self._weights).argmin())


def _distinct(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of [n, 2] int in sorted order, and the index of each row among them, [n] int."""
    keys, index = np.unique(sizes[:, 0] << 32 | sizes[:, 1], return_inverse=True)
    return np.stack([keys >> 32, keys & 2**32 - 1], axis=1), index


def bucket_for(size: tuple[int, int], buckets: Sequence[Bucket]) -> Bucket | None:
    """The bucket with the smallest area that holds an image of this (height, width), or None.

    Sizes are in pixels.
    """
    fitting = [bucket for bucket in buckets if bucket[0] >= size[0] and bucket[1] >= size[1]]
    return min(fitting, key=by_area, default=None)


def useful_share(sizes: np.ndarray, buckets: Sequence[Bucket]) -> float:
    """The fraction of bucket pixels that belong to images, if each image is in the smallest bucket that holds it.

    Args:
      sizes: [n, 2] int, (height, width) in pixels. Each fits in some bucket.
      buckets: each (height, width) in pixels.
    """
    return float(np.prod(sizes, axis=1).sum() / _padded_areas(sizes, buckets).sum())


def _padded_areas(sizes: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """The pixels of the smallest bucket that holds each image, [n] float. Infinite if no bucket holds the image."""
    shapes = np.asarray(buckets)
    holds = (shapes >= np.asarray(sizes)[:, None]).all(axis=-1)
    return np.where(holds, shapes.prod(axis=1).astype(np.float64), np.inf).min(axis=1)


def train_sizes(source: Source, config: DataConfig) -> np.ndarray:
    """Random sizes of augmented training images, [n, 2] int, (height, width) in pixels.

    The random numbers are seeded. Small data sets have one or more sizes per image.
    """
    rng = np.random.default_rng(0)
    images = np.tile(rng.permutation(len(source)), -(-_GEOMETRIES // len(source)))[:_GEOMETRIES]
    draws = rng.random((len(images), config.augmentation.draws))
    return config.augmentation.geometries(source.sizes[images], draws, config).size


def val_sizes(source: Source, config: DataConfig) -> np.ndarray:
    """The sizes of all validation images after resizing, [images, 2] int, (height, width) in pixels."""
    return val_geometries(source.sizes, config).size


def train_buckets(source: Source, config: DataConfig, stride: int) -> list[Bucket]:
    """``config.train_buckets``. If it is empty, up to ``config.num_train_buckets`` are chosen from the data."""
    if config.train_buckets:
        return sorted(set(config.train_buckets), key=by_area)
    return choose_buckets(
        train_sizes(source, config), config.num_train_buckets, stride, config.augmentation.bounds(source.sizes, config)
    )


def val_buckets(source: Source, config: DataConfig, stride: int) -> list[Bucket]:
    """``config.val_buckets``. If it is empty, up to ``config.num_val_buckets`` are chosen from the data."""
    if config.val_buckets:
        return sorted(set(config.val_buckets), key=by_area)
    return choose_buckets(val_sizes(source, config), config.num_val_buckets, stride)
