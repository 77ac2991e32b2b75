"""Batches of static shapes: which images share a canvas, in which order, and the pipeline that fills them.

An epoch's plan is a function of (seed, epoch) alone, so a run resumes at a step by starting the plan there, and
the batches are the same for any number of threads or worker processes.
"""

import collections
import ctypes
import functools
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from detr_jax.config import DataConfig
from detr_jax.data.source import DataError, Objects, Source
from detr_jax.data.transforms import DRAWS, Geometry, apply, largest_sizes, train_geometry, val_geometry

Bucket = tuple[int, int]
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


def bucket_for(size: tuple[int, int], buckets: Sequence[Bucket]) -> Bucket | None:
    """The bucket of the smallest area that holds an image of this (height, width); None where none does."""
    fitting = [bucket for bucket in buckets if bucket[0] >= size[0] and bucket[1] >= size[1]]
    return min(fitting, key=lambda bucket: (bucket[0] * bucket[1], bucket), default=None)


def _check_fit(source: Source, index: int, size: tuple[int, int], buckets: Sequence[Bucket], field: str) -> None:
    if bucket_for(size, buckets) is None:
        raise DataError(
            f"Image {source.image_ids[index]} is up to {size[0]} x {size[1]} pixels (height x width) after resizing, "
            f"and no canvas of {field}={tuple(buckets)} holds that: add one, or take the image out."
        )


class TrainPlan:
    """All batches of a training run, by step: a random-access sequence of `PlannedBatch`.

    An epoch has ``len(source) // batch_size`` batches (at least one). Its images are shuffled, augmented on
    paper and gathered by bucket; what a bucket has left over moves on to the next larger one that holds it.
    At the end a few images may be left out and a few used twice, other ones in each epoch.
    """

    def __init__(self, source: Source, config: DataConfig, batch_size: int, seed: int):
        self.source = source
        self.config = config
        self.batch_size = batch_size
        self.seed = seed
        self.buckets = sorted(set(config.train_buckets), key=lambda bucket: (bucket[0] * bucket[1], bucket))
        self.steps_per_epoch = max(1, len(source) // batch_size)
        for index, size in enumerate(source.sizes.tolist()):
            for largest in largest_sizes(tuple(size), config):
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
        order_rng = np.random.default_rng((self.seed, epoch, 1))
        by_bucket: dict[Bucket, list[PlannedImage]] = collections.defaultdict(list)
        for index in order_rng.permutation(len(self.source)).tolist():
            height, width = self.source.sizes[index].tolist()
            geometry = train_geometry((height, width), draws[index], self.config)
            bucket = bucket_for(geometry.size, self.buckets)
            assert bucket is not None, "largest_sizes() was not large enough"
            by_bucket[bucket].append(PlannedImage(index, geometry))

        batches, leftovers = self._full_batches(by_bucket)
        everyone = [image for images in by_bucket.values() for image in images]
        while len(batches) < self.steps_per_epoch:
            # by chance in proportion to their number, so that no image is left out more often than others
            numbers = np.array([len(images) for _, images in leftovers])
            bucket, images = leftovers.pop(order_rng.choice(len(leftovers), p=numbers / numbers.sum()))
            fitting = [image for image in everyone if _holds(bucket, image.geometry.size)]
            missing = self.batch_size - len(images)
            extra = order_rng.choice(len(fitting), size=missing, replace=missing > len(fitting))
            batches.append(PlannedBatch(bucket, images + [fitting[i] for i in extra]))
        order = order_rng.permutation(len(batches))
        return [batches[i] for i in order]

    def _full_batches(
        self, by_bucket: dict[Bucket, list[PlannedImage]]
    ) -> tuple[list[PlannedBatch], list[tuple[Bucket, list[PlannedImage]]]]:
        """Full batches, and the leftovers of the largest buckets."""
        batches: list[PlannedBatch] = []
        leftovers: list[tuple[Bucket, list[PlannedImage]]] = []
        waiting = {bucket: list(by_bucket.get(bucket, [])) for bucket in self.buckets}
        for i, bucket in enumerate(self.buckets):
            images = waiting[bucket]
            while len(images) >= self.batch_size:
                batches.append(PlannedBatch(bucket, images[: self.batch_size]))
                images = images[self.batch_size :]
            larger = next((other for other in self.buckets[i + 1 :] if _holds(other, bucket)), None)
            if larger is not None:
                waiting[larger] += images
            elif images:
                leftovers.append((bucket, images))
        return batches, leftovers


def _holds(bucket: Bucket, size: tuple[int, int]) -> bool:
    return bucket[0] >= size[0] and bucket[1] >= size[1]


class ValPlan:
    """Every image once, in batches of one bucket; the last batch of a bucket may have fewer images."""

    def __init__(self, source: Source, config: DataConfig, batch_size: int):
        by_bucket: dict[Bucket, list[PlannedImage]] = collections.defaultdict(list)
        for index, (height, width) in enumerate(source.sizes.tolist()):
            geometry = val_geometry((height, width), config)
            _check_fit(source, index, geometry.size, config.val_buckets, "data.val_buckets")
            bucket = bucket_for(geometry.size, config.val_buckets)
            assert bucket is not None
            by_bucket[bucket].append(PlannedImage(index, geometry))
        self.batches = [
            PlannedBatch(bucket, images[start : start + batch_size])
            for bucket, images in sorted(by_bucket.items())
            for start in range(0, len(images), batch_size)
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
    import grain  # here: models and weights are of use without it
    from absl import flags

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
