"""Plan the batches of a run: their images, order and buckets, and how each image is augmented.

The plan of an epoch is a function of data, configuration, seed and epoch. A run therefore resumes by starting the plan
at its step. A plan holds a few arrays, and the objects of a batch are made when it is looked up.
"""

import functools
import threading
from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np

from detr_jax.config import DataConfig
from detr_jax.data.buckets import Bucket, train_buckets, val_buckets
from detr_jax.data.grouping import NO_IMAGE, group, group_all
from detr_jax.data.source import DataError, Source
from detr_jax.data.transforms import Geometries, Geometry, val_geometries


class PlannedImage(NamedTuple):
    """An image of a planned batch."""

    source_index: int
    geometry: Geometry
    pixel_draws: tuple[float, ...] = ()
    """Random numbers in [0, 1) for the photometric half of the augmentation."""


class PlannedBatch(NamedTuple):
    """A batch before a pixel is read."""

    bucket: Bucket
    images: list[PlannedImage]
    spares: Sequence[PlannedImage] = ()
    """Further images that fit the bucket. They replace unreadable images if the batch has no readable image left."""


class PlannedBatches(Sequence[PlannedBatch]):
    """Batches stored as arrays. Dimensions: ``n`` images of the data set, ``S`` batches, ``B`` slots of a batch.

    Args:
      buckets: (height, width) in pixels.
      bucket_of: [S] int, the index of each batch's bucket.
      images: [S, B] int, indices of images. An empty slot has -1.
      geometries: the geometries of the ``n`` images.
      pixel_draws: [n, k] float, random numbers in [0, 1) for the photometric half of the augmentation. By default none.
      spare_batch: [S] int, the index of the batch whose images are spares. -1: none.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        bucket_of: np.ndarray,
        images: np.ndarray,
        geometries: Geometries,
        spare_batch: np.ndarray | None = None,
        pixel_draws: np.ndarray | None = None,
    ):
        self._buckets = buckets
        self._bucket_of = bucket_of.astype(np.int32)
        self._images = images.astype(np.int32)
        self._geometries = geometries
        self._spare_batch = None if spare_batch is None else spare_batch.astype(np.int32)
        self._pixel_draws = pixel_draws

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> PlannedBatch: ...
    @overload
    def __getitem__(self, index: slice) -> list[PlannedBatch]: ...
    def __getitem__(self, index: int | slice) -> PlannedBatch | list[PlannedBatch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        spare = -1 if self._spare_batch is None else int(self._spare_batch[index])
        bucket = self._buckets[self._bucket_of[index]]
        return PlannedBatch(bucket, self._planned(index), self._planned(spare) if spare >= 0 else ())

    def _planned(self, batch: int) -> list[PlannedImage]:
        images = self._images[batch].tolist()
        return [self._image(index) for index in images if index != NO_IMAGE]

    def _image(self, index: int) -> PlannedImage:
        draws = () if self._pixel_draws is None else tuple(self._pixel_draws[index].tolist())
        return PlannedImage(index, self._geometries[index], draws)


class TrainPlan:
    """All batches of a training run, by step: a random-access sequence of `PlannedBatch`.

    An epoch has ``len(source) // batch_size`` batches (at least one). The sizes of its augmented images are computed
    beforehand, and `group` assigns them to ``buckets``. A few images may be dropped, different ones in each epoch.

    Args:
      source: the training images.
      config: gives the augmentation and the buckets.
      batch_size: images per batch.
      seed: the seed of the augmentation and of the order.
      stride: the stride of the model in pixels. The sides of chosen buckets are multiples of it.

    Raises:
      DataError: an image fits in none of ``config.train_buckets``.
    """

    def __init__(self, source: Source, config: DataConfig, batch_size: int, seed: int, stride: int = 32):
        self.source = source
        self.config = config
        self.batch_size = batch_size
        self.seed = seed
        self.buckets = train_buckets(source, config, stride)
        self.steps_per_epoch = steps_per_epoch(len(source), batch_size)
        _check_fit(source, config.augmentation.bounds(source.sizes, config), self.buckets, "data.train_buckets")
        self._make_cache()

    def _make_cache(self) -> None:
        self._lock = threading.Lock()
        self._epoch_cached = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_epoch_cached")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._make_cache()

    def __len__(self) -> int:
        return 2**48  # no run is longer: the number of steps ends it

    def __getitem__(self, step: int) -> PlannedBatch:
        epoch, position = divmod(int(step), self.steps_per_epoch)
        return self.epoch(epoch)[position]

    def epoch(self, epoch: int) -> PlannedBatches:
        """The batches of an epoch."""
        with self._lock:
            return self._epoch_cached(epoch)

    def _plan_epoch(self, epoch: int) -> PlannedBatches:
        augmentation, number = self.config.augmentation, len(self.source)
        draws = np.random.default_rng((self.seed, epoch, 0)).random((number, augmentation.draws))
        geometries = augmentation.geometries(self.source.sizes, draws, self.config)
        rng = np.random.default_rng((self.seed, epoch, 1))
        bucket_of, images = group(geometries.size, self.buckets, self.batch_size, rng)
        spares = _spare_batches(bucket_of, self.buckets)
        pixel_draws = np.random.default_rng((self.seed, epoch, 2)).random((number, augmentation.pixel_draws))
        return PlannedBatches(self.buckets, bucket_of, images, geometries, spares, pixel_draws)


def steps_per_epoch(images: int, batch_size: int) -> int:
    """The number of optimizer steps per epoch of ``images`` training images."""
    return max(1, images // batch_size)


def _spare_batches(bucket_of: np.ndarray, buckets: Sequence[Bucket]) -> np.ndarray:
    """For each batch, the next batch in the epoch whose bucket fits into its own, [S] int. -1: none.

    After the last batch, the search continues with the first.
    """
    spare = np.full(len(bucket_of), -1)
    for bucket in np.unique(bucket_of):
        fits = (np.asarray(buckets) <= buckets[bucket]).all(axis=1)
        own, fitting = np.flatnonzero(bucket_of == bucket), np.flatnonzero(fits[bucket_of])
        if len(fitting) > 1:  # there are batches in addition to the batch itself
            spare[own] = fitting[np.searchsorted(fitting, own, side="right") % len(fitting)]
    return spare


class ValPlan:
    """All batches of one pass over the validation images. Each image appears once, and a few batches have empty slots.

    Args:
      source: the validation images.
      config: gives the size of the images and the buckets.
      batch_size: slots per batch.
      stride: the stride of the model in pixels. The sides of chosen buckets are multiples of it.

    Raises:
      DataError: an image fits in none of ``config.val_buckets``.
    """

    def __init__(self, source: Source, config: DataConfig, batch_size: int, stride: int = 32):
        self.buckets = val_buckets(source, config, stride)
        geometries = val_geometries(source.sizes, config)
        _check_fit(source, geometries.size[:, None], self.buckets, "data.val_buckets")
        bucket_of, images = group_all(geometries.size, self.buckets, batch_size)
        self.batches = PlannedBatches(self.buckets, bucket_of, images, geometries)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PlannedBatch:
        return self.batches[index]


def _check_fit(source: Source, sizes: np.ndarray, buckets: Sequence[Bucket], field: str) -> None:
    """Checks that all sizes fit in some bucket. ``sizes``: [n, k, 2] int, (height, width) in pixels of ``n`` images."""
    held = (np.asarray(buckets) >= sizes[:, :, None]).all(axis=-1).any(axis=-1)
    if not held.all():
        index, bound = np.argwhere(~held)[0].tolist()
        height, width = sizes[index, bound].tolist()
        raise DataError(
            f"Image {source.image_ids[index]} can be as large as {height} x {width} pixels (height x width) after "
            f"resizing, and no bucket in {field}={tuple(buckets)} is large enough: add a larger bucket or remove the "
            "image."
        )
