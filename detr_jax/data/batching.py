"""Batches of static shapes: which images share a canvas, in which order, and the pipeline that fills them.

An epoch's plan is a function of (seed, epoch) alone, so a run resumes at a step by starting the plan there, and
the batches are the same for any number of threads or worker processes.
"""

import ctypes
import functools
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from detr_jax.config import DataConfig
from detr_jax.data.buckets import Bucket, bucket_for, train_buckets, val_buckets
from detr_jax.data.grouping import group, group_all
from detr_jax.data.source import DataError, Objects, Source
from detr_jax.data.transforms import DRAWS, Geometry, apply, largest_sizes, train_geometry, val_geometry

NO_IMAGE = -1


class Batch(NamedTuple):
    """Images on one canvas and their objects, in numpy. Dimensions: ``B`` batch, ``H, W`` canvas, ``T`` boxes."""

    images: np.ndarray
    """[B, H, W, 3] uint8, zero-padded at the bottom and right."""
    sizes: np.ndarray
    """[B, 2] int32, (height, width) in pixels of the image on the canvas."""
    boxes: np.ndarray
    """[B, T, 4] float32, cxcywh in 0..1 of the unpadded image; zero beyond ``count``."""
    labels: np.ndarray
    """[B, T] int32."""
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count
    """[B] int32, the number of boxes of each image."""
    image_ids: np.ndarray
    """[B] int64; -1 where a validation batch has no image left."""
    original_sizes: np.ndarray
    """[B, 2] int32, (height, width) in pixels before any resizing."""


class PlannedImage(NamedTuple):
    """An image of a planned batch."""

    source_index: int
    geometry: Geometry


class PlannedBatch(NamedTuple):
    """A batch before a pixel is read."""

    bucket: Bucket
    images: list[PlannedImage]


def _check_fit(source: Source, index: int, size: tuple[int, int], buckets: Sequence[Bucket], field: str) -> None:
    if bucket_for(size, buckets) is None:
        raise DataError(
            f"Image {source.image_ids[index]} is up to {size[0]} x {size[1]} pixels (height x width) after resizing, "
            f"and no canvas of {field}={tuple(buckets)} holds that: add one, or take the image out."
        )


class TrainPlan:
    """All batches of a training run, by step: a random-access sequence of `PlannedBatch`.

    An epoch has ``len(source) // batch_size`` batches (at least one). Its images are augmented on paper and shared
    out over the canvases ``buckets`` by `group`. A few may be left out, other ones in each epoch.
    """

    def __init__(self, source: Source, config: DataConfig, batch_size: int, seed: int, stride: int = 32):
        """``stride`` is the backbone's, of which chosen canvases are multiples."""
        self.source = source
        self.config = config
        self.batch_size = batch_size
        self.seed = seed
        self.buckets = train_buckets(source, config, stride)
        self.steps_per_epoch = max(1, len(source) // batch_size)
        sizes, first = np.unique(source.sizes, axis=0, return_index=True)
        for index, (height, width) in zip(first.tolist(), sizes.tolist(), strict=True):
            for largest in largest_sizes((height, width), config):
                _check_fit(source, index, largest, self.buckets, "data.train_buckets")
        self._lock = threading.Lock()
        self._epoch_cached = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def __getstate__(self) -> dict:
        return {k: v for k, v in self.__dict__.items() if k not in ("_lock", "_epoch_cached")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
        self._epoch_cached = functools.lru_cache(maxsize=2)(self._plan_epoch)

    def __len__(self) -> int:
        return 2**48  # a run ends by its number of steps

    def __getitem__(self, step: int) -> PlannedBatch:
        epoch, position = divmod(int(step), self.steps_per_epoch)
        return self.epoch(epoch)[position]

    def epoch(self, epoch: int) -> list[PlannedBatch]:
        """The batches of an epoch."""
        with self._lock:
            return self._epoch_cached(epoch)

    def _plan_epoch(self, epoch: int) -> list[PlannedBatch]:
        draws = np.random.default_rng((self.seed, epoch, 0)).random((len(self.source), DRAWS))
        geometries = [
            train_geometry((height, width), draw, self.config)
            for (height, width), draw in zip(np.asarray(self.source.sizes).tolist(), draws, strict=True)
        ]
        sizes = np.array([geometry.size for geometry in geometries])
        rng = np.random.default_rng((self.seed, epoch, 1))
        return [
            PlannedBatch(bucket, [PlannedImage(index, geometries[index]) for index in indices.tolist()])
            for bucket, indices in group(sizes, self.buckets, self.batch_size, rng)
        ]


class ValPlan:
    """All batches of one pass over the validation images, each image once, few batches only partly filled."""

    def __init__(self, source: Source, config: DataConfig, batch_size: int, stride: int = 32):
        """``stride`` is the backbone's, of which chosen canvases are multiples."""
        self.buckets = val_buckets(source, config, stride)
        geometries = [val_geometry((height, width), config) for height, width in np.asarray(source.sizes).tolist()]
        for index, geometry in enumerate(geometries):
            _check_fit(source, index, geometry.size, self.buckets, "data.val_buckets")
        sizes = np.array([geometry.size for geometry in geometries])
        self.batches = [
            PlannedBatch(bucket, [PlannedImage(index, geometries[index]) for index in indices.tolist()])
            for bucket, indices in group_all(sizes, self.buckets, batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> PlannedBatch:
        return self.batches[index]


class BatchLoader:
    """Reads, transforms and pads the images of a planned batch."""

    def __init__(self, source: Source, batch_size: int):
        self.source = source
        self.batch_size = batch_size
        self.max_objects = max(1, source.max_objects)

    def __call__(self, plan: PlannedBatch) -> Batch:
        """A `Batch` of ``batch_size`` images; places without an image have ``image_ids`` -1 and no boxes."""
        size, targets = self.batch_size, self.max_objects
        batch = Batch(
            images=np.zeros((size, *plan.bucket, 3), np.uint8),
            sizes=np.full((size, 2), plan.bucket, np.int32),
            boxes=np.zeros((size, targets, 4), np.float32),
            labels=np.zeros((size, targets), np.int32),
            count=np.zeros(size, np.int32),
            image_ids=np.full(size, NO_IMAGE, np.int64),
            original_sizes=np.ones((size, 2), np.int32),
        )
        for i, (index, geometry) in enumerate(plan.images):
            image, objects = apply(geometry, *self.source[index])
            height, width = image.shape[:2]
            count = len(objects.labels)
            batch.images[i, :height, :width] = image
            batch.sizes[i] = height, width
            batch.boxes[i, :count] = _normalized_cxcywh(objects, height, width)
            batch.labels[i, :count] = objects.labels
            batch.count[i] = count
            batch.image_ids[i] = self.source.image_ids[index]
            batch.original_sizes[i] = self.source.sizes[index]
        return batch


def _normalized_cxcywh(objects: Objects, height: int, width: int) -> np.ndarray:
    x0, y0, x1, y1 = (objects.boxes / np.array([width, height] * 2, np.float32)).T
    return np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1)


def batches(
    plan: TrainPlan | ValPlan, source: Source, batch_size: int, config: DataConfig, *, start: int = 0
) -> Iterator[Batch]:
    """The batches of a plan from ``start`` on, prepared ahead by threads or, if asked for, worker processes."""
    if not flags.FLAGS.is_parsed():  # grain reads absl flags, which a program without absl.app never parses
        flags.FLAGS.mark_as_parsed()
    dataset = grain.MapDataset.source(plan).map(BatchLoader(source, batch_size))[start:]
    options = grain.ReadOptions(num_threads=config.num_threads, prefetch_buffer_size=config.prefetch)
    iterable = dataset.to_iter_dataset(options)
    if config.num_workers:
        workers = grain.MultiprocessingOptions(num_workers=config.num_workers, per_worker_buffer_size=1)
        iterable = iterable.mp_prefetch(workers, worker_init_fn=_prepare_worker)
    iterator = iter(iterable)
    try:
        yield from iterator
    finally:
        if config.num_workers:
            iterator.close()


def _prepare_worker(worker_index: int, worker_count: int) -> None:
    """Leaves Ctrl-C to the parent, and has Linux end this process when the parent is gone, however it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        end_signal_option = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(end_signal_option, signal.SIGKILL)
