"""The pipeline that fills the batches of a plan with pixels and boxes. Each batch has the shape of its bucket.

The batches are the same for any number of threads or worker processes.
"""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from PIL import Image

from detr_jax.config import Augmentation, ConfigError, DataConfig, DetrAugmentation
from detr_jax.data.grouping import NO_IMAGE
from detr_jax.data.own_sources import check_image, is_own, usable_objects
from detr_jax.data.plans import PlannedBatch, PlannedImage, TrainPlan, ValPlan
from detr_jax.data.shared_arrays import unlinked
from detr_jax.data.source import DataError, Objects, PictureSource, Source
from detr_jax.data.transforms import first_size, transform_objects, transform_picture
from detr_jax.data.worker_processes import prepare_worker, signals_blocked, start_resource_tracker
from detr_jax.masks import ROWS_PER_BYTE
from detr_jax.returned import described
from detr_jax.structures import Batch, BatchInfo, BatchInputs, Targets


class LoaderError(RuntimeError):
    """The pipeline failed. The message says how it failed and what to try."""


class BatchLoader:
    """Fills planned batches with pixels and boxes.

    Args:
      source: the data set.
      batch_size: slots of a batch.
      num_threads: number of threads that read images.
      scaled_decoding: decode JPEGs to the smallest scale that the plan allows.
      skip: replace an unreadable image by a readable one of the same batch or by a spare image. If False, the
        `DataError` of the image is raised. The replacement depends only on the plan and on which images are readable.
      masks: read the masks of the objects too.
      augmentation: changes the pixels of every image. None: pixels are not changed.
      rows: the rows of every batch to fill. The result consists of these rows. By default all rows are filled.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        *,
        num_threads: int = 1,
        scaled_decoding: bool = False,
        skip: bool = False,
        masks: bool = False,
        augmentation: Augmentation | None = None,
        rows: Sequence[int] | None = None,
    ):
        self.source = source
        self.rows = range(batch_size) if rows is None else rows
        self.max_objects = max(1, source.max_objects)
        self.num_threads = num_threads
        self.scaled_decoding = scaled_decoding
        self.skip = skip
        self.masks = masks
        self.augmentation = augmentation
        self._is_own = is_own(source)
        self._pictures = source if isinstance(source, PictureSource) else None
        self._start_threads()

    def _start_threads(self) -> None:
        self._threads = ThreadPoolExecutor(self.num_threads, "images") if self.num_threads > 1 else None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_threads": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start_threads()

    def __call__(self, plan: PlannedBatch) -> Batch:
        """A `Batch` of the rows. Empty slots have ``image_ids`` -1 and no boxes.

        Raises:
          DataError: an image cannot be read. With ``skip``, none of the images can be read.
        """
        batch = self._empty(plan.bucket)
        each = map if self._threads is None else self._threads.map
        places = {row: place for place, row in enumerate(self.rows) if row < len(plan.images)}
        planned = (plan.images[row] for row in places)
        errors = dict(zip(places, each(functools.partial(self._fill, batch), places.values(), planned), strict=True))
        for row, error in errors.items():
            if error is None:
                continue
            if not self.skip:
                raise error
            batch.info.skipped[places[row]] = self.source.image_ids[plan.images[row].source_index]
            if not self._substitute(batch, plan, row, places, errors):
                raise error
        return batch

    def _empty(self, bucket: tuple[int, int]) -> Batch:
        """A batch of this bucket without images: no boxes, ids of -1, and valid sizes equal to the bucket."""
        size, targets = len(self.rows), self.max_objects
        return Batch(
            BatchInputs(
                images=np.zeros((size, *bucket, 3), np.uint8),
                valid_sizes=np.full((size, 2), bucket, np.int32),
                targets=Targets(
                    boxes=np.zeros((size, targets, 4), np.float32),
                    labels=np.zeros((size, targets), np.int32),
                    count=np.zeros(size, np.int32),
                    masks=np.zeros((size, *mask_shape(targets, bucket)), np.uint8) if self.masks else None,
                ),
            ),
            BatchInfo(
                image_ids=np.full(size, NO_IMAGE, np.int64),
                original_sizes=np.ones((size, 2), np.int32),
                skipped=np.full(size, NO_IMAGE, np.int64),
            ),
        )

    def _copy(self, batch: Batch, source: int, destination: int) -> None:
        """Copies an image and its objects from one slot of a batch to another."""
        for array in jax.tree.leaves((batch.inputs, batch.info.image_ids, batch.info.original_sizes)):
            array[destination] = array[source]

    def _substitute(
        self,
        batch: Batch,
        plan: PlannedBatch,
        row: int,
        places: Mapping[int, int],
        errors: Mapping[int, DataError | None],
    ) -> bool:
        """Fills the slot of ``row`` with the next readable image of the whole batch, or else with a spare image.

        Returns:
          Whether there was a readable image.
        """
        place = places[row]
        for other in (*range(row + 1, len(plan.images)), *range(row)):
            if other not in places:  # another process fills this row
                if self._fill(batch, place, plan.images[other]) is None:
                    return True
            elif errors[other] is None:
                self._copy(batch, places[other], place)
                return True
        return any(self._fill(batch, place, spare) is None for spare in plan.spares)

    def _fill(self, batch: Batch, place: int, planned: PlannedImage) -> DataError | None:
        """Puts an image into its slot. If it cannot be read, returns the error and leaves the slot as it was."""
        index, geometry = planned.source_index, planned.geometry
        original_size = tuple(self.source.sizes[index].tolist())
        try:
            picture, objects = self._read(index, first_size(geometry) if self.scaled_decoding else None)
            if self._is_own:
                objects = usable_objects(self.source, index, objects, masks=self.masks)
            if not self.masks:
                objects = dataclasses.replace(objects, masks=None)
            objects = transform_objects(geometry, objects, original_size)
            masks = self._packed_masks(index, objects) if self.masks else None
        except DataError as error:
            return error
        height, width = geometry.size
        inputs, targets = batch.inputs, batch.inputs.targets
        pixels = np.asarray(transform_picture(geometry, picture, original_size))
        inputs.images[place, :height, :width] = self._augmented(pixels, planned.pixel_draws)
        inputs.valid_sizes[place] = height, width
        count = len(objects.labels)
        if masks is not None and targets.masks is not None:
            targets.masks[place, :count, : masks.shape[1], :width] = masks
        targets.boxes[place, :count] = _normalized_cxcywh(objects, height, width)
        targets.labels[place, :count] = objects.labels
        targets.count[place] = count
        batch.info.image_ids[place] = self.source.image_ids[index]
        batch.info.original_sizes[place] = original_size
        return None

    def _packed_masks(self, index: int, objects: Objects) -> np.ndarray:
        """The masks of the objects as bits.

        Raises:
          DataError: the data set has no masks, or one cannot be read.
        """
        if objects.masks is None:
            image = f"image {self.source.image_ids[index]}"
            raise DataError(f"data.masks=True needs masks, and {image} of {self.source.faults.where} has none.")
        return objects.masks.packed()

    def _read(self, index: int, least: tuple[int, int] | None) -> tuple[Image.Image, Objects]:
        """An image and its objects. The image may have a smaller scale, as long as it is not below ``least``.

        Raises:
          DataError: it cannot be read.
        """
        try:
            if self._pictures is not None:
                return self._pictures.picture(index, least), self._pictures.objects(index)
            sample = self.source[index]
        except (DataError, MemoryError):
            raise
        except Exception as error:
            if not self._is_own:
                raise
            image = f"image {self.source.image_ids[index]}"  # the user's code can raise anything
            raise DataError(
                f"{type(self.source).__name__} cannot read {image} ({type(error).__name__}: {error})."
            ) from error
        if self._is_own:
            check_image(self.source, index, sample.image)
        return Image.fromarray(sample.image), sample.objects

    def _augmented(self, pixels: np.ndarray, draws: tuple[float, ...]) -> np.ndarray:
        """The pixels [H, W, 3] uint8 of an image after the photometric half of its augmentation."""
        if self.augmentation is None:
            return pixels
        changed = self.augmentation.pixels(pixels, draws)
        if getattr(changed, "shape", None) != pixels.shape or changed.dtype != np.uint8:
            raise ConfigError(
                f"{_changer_of_pixels(self.augmentation)} returned {described(changed)}: it must return the pixels as "
                f"uint8 of shape {list(pixels.shape)}, as it got them."
            )
        return changed


def mask_shape(objects: int, bucket: tuple[int, int]) -> tuple[int, int, int]:
    """The shape [T, ceil(H / 8), W] of the masks of an image as bits, for (H, W) ``bucket`` in pixels."""
    return objects, -(-bucket[0] // ROWS_PER_BYTE), bucket[1]


def _changer_of_pixels(augmentation: Augmentation) -> str:
    """The field and the class that changes pixels."""
    field, part = "data.augmentation", augmentation
    if isinstance(augmentation, DetrAugmentation) and type(augmentation).pixels is DetrAugmentation.pixels:
        field, part = f"{field}.photometric", augmentation.photometric  # type: ignore[assignment]
    return f"{field} ({type(part).__name__})"


def _normalized_cxcywh(objects: Objects, height: int, width: int) -> np.ndarray:
    x0, y0, x1, y1 = (objects.boxes / np.array([width, height] * 2, np.float32)).T
    return np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1)


def num_threads(config: DataConfig) -> int:
    """``config.num_threads``. If it is 0, the number of cores divided by the number of worker processes."""
    return config.num_threads or max(1, usable_cores() // max(1, config.num_workers))


def usable_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def create_loader(
    plan: TrainPlan | ValPlan, source: Source, batch_size: int, config: DataConfig, *, rows: Sequence[int] | None = None
) -> BatchLoader:
    """The loader of a plan's batches. `batches` describes the arguments."""
    training = isinstance(plan, TrainPlan)
    return BatchLoader(
        source,
        batch_size,
        num_threads=num_threads(config),
        scaled_decoding=training and config.scaled_decoding,
        skip=training and config.on_error == "skip",
        masks=training and config.masks,
        augmentation=config.augmentation if training else None,
        rows=rows,
    )


def batches(
    plan: TrainPlan | ValPlan,
    source: Source,
    batch_size: int,
    config: DataConfig,
    *,
    start: int = 0,
    rows: Sequence[int] | None = None,
) -> Generator[Batch]:
    """Yields the batches of a plan from number ``start`` on. Threads or processes prepare them ahead.

    If ``rows`` is given, a batch has only these rows. ``config.on_error`` and ``config.scaled_decoding`` apply to
    training only. Validation images are never skipped, and they are decoded at full scale.

    Raises:
      DataError: an image cannot be read.
      LoaderError: a worker process was killed.
    """
    import grain  # imported here because models and weights can be used without it
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain reads absl flags, and only absl.app parses them
        flags.FLAGS.mark_as_parsed()
    loader = create_loader(plan, source, batch_size, config, rows=rows)
    dataset = grain.MapDataset.source(plan).map(loader)[start:]
    # The threads of the loader already share the images of one batch. A second batch keeps them busy in between.
    options = grain.ReadOptions(num_threads=min(2, config.prefetch), prefetch_buffer_size=config.prefetch)
    iterable = dataset.to_iter_dataset(options)
    if config.num_workers:
        workers = grain.MultiprocessingOptions(num_workers=config.num_workers, per_worker_buffer_size=1)
        iterable = iterable.mp_prefetch(workers, worker_init_fn=_prepare_worker)
        start_resource_tracker()
    iterator = iter(iterable)
    try:
        with signals_blocked() if config.num_workers else contextlib.nullcontext():
            first = list(itertools.islice(iterator, 1))  # starts the processes
        while first:
            yield unlinked(first.pop())
        yield from map(unlinked, iterator)
    except RuntimeError as error:
        if "Worker process" not in str(error):
            raise
        raise LoaderError(
            f"A process that loads data ended unexpectedly ({str(error).strip().rstrip('.')}). It may have run out of "
            f"memory: lower data.num_workers={config.num_workers} or data.prefetch={config.prefetch}."
        ) from None
    finally:
        if config.num_workers:
            iterator.close()


def _prepare_worker(worker_index: int, worker_count: int) -> None:
    prepare_worker()
