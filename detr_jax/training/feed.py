"""Batches on their way to the devices: sent one ahead, skipped images counted, the loader's pace watched."""

from collections.abc import Callable, Iterator

from jax.sharding import Mesh

from detr_jax.config import DataConfig
from detr_jax.data import DataError, Source
from detr_jax.data.batching import num_threads, usable_cores
from detr_jax.distributed import gathered
from detr_jax.sharding import shard_rows
from detr_jax.structures import Batch, BatchInputs

_NAMED = 3  # skipped images that are told by name
_QUIET_LINES = 20  # lines of the log between two warnings of a slow loader


class Feed:
    """An iterator over `BatchInputs`, from batches that hold the `detr_jax.sharding.own_rows` of this process.

    Raises, as it goes on:
      DataError: more images were skipped than ``config.max_skipped`` allows, or what the stream raises.
    """

    def __init__(
        self, stream: Iterator[Batch], mesh: Mesh, source: Source, config: DataConfig, say: Callable[[str], None]
    ):
        self._stream = stream
        self._mesh = mesh
        self._source = source
        self._config = config
        self._say = say
        self._ahead: BatchInputs | None = None
        self.images = 0
        """Images received by this process."""
        self.skipped = 0
        """Images among them that stood in the place of one that could not be read."""
        self._first_skipped: dict[int, str] = {}

    def __iter__(self) -> Iterator[BatchInputs]:
        return self

    def __next__(self) -> BatchInputs:
        batch = self._ahead or self._send()
        try:
            self._ahead = self._send()
        except StopIteration:
            self._ahead = None
        return batch

    def _send(self) -> BatchInputs:
        batch = next(self._stream)
        self._count(batch)
        return shard_rows(batch.inputs, self._mesh)

    def _count(self, batch: Batch) -> None:
        self.images += len(batch.info.skipped)
        for image_id in batch.info.skipped[batch.info.skipped >= 0].tolist():
            self.skipped += 1
            if len(self._first_skipped) < _NAMED and image_id not in self._first_skipped:
                self._first_skipped[image_id] = self._reason(image_id)
                self._say(f"Skipped image {image_id}: {self._first_skipped[image_id]}")
        self._check(self.images, self.skipped)

    def skipped_by_all(self) -> int:
        """Images skipped in all processes, which call this together; raises where they are too many."""
        images, skipped = gathered([self.images, self.skipped]).sum(axis=0).tolist()
        self._check(images, skipped)
        return skipped

    def _check(self, images: int, skipped: int) -> None:
        if skipped > self._config.max_skipped * max(images, len(self._source)):
            raise DataError(
                f"{skipped} of {images} training images could not be read, which is more than data.max_skipped="
                f"{self._config.max_skipped} of them, or of the {len(self._source)} images of an epoch: repair or "
                f"remove them, or raise data.max_skipped. The first: {' '.join(self._first_skipped.values())}"
            )

    def _reason(self, image_id: int) -> str:
        """What is wrong with an image, by reading it again: it may have been read by another process."""
        try:
            self._source[list(self._source.image_ids).index(image_id)]
        except DataError as error:
            return str(error)
        return f"image {image_id} could be read when it was tried again."


class Pace:
    """Notices that the loader, not the step, is what limits training."""

    def __init__(self, batch_size: int, config: DataConfig):
        self._batch_size = batch_size
        self._config = config
        self._lines = self._limited_lines = self._quiet_until = self._steps = 0
        self._seconds = self._waited = 0.0
        self.alone: float | None = None
        """Seconds of one step that began with idle devices, until its result was there; wanted once a line."""

    def add(self, seconds: float, waited: float) -> None:
        """Counts a step that took so long in the loop, waiting for data included."""
        self._steps += 1
        self._seconds += seconds
        self._waited += waited

    def sentence(self) -> str | None:
        """At each line of the log: a warning with both rates, if two on end gave reason and none was just given."""
        steps, seconds, waited, alone = self._steps, self._seconds, self._waited, self.alone
        self._steps, self._seconds, self._waited, self.alone = 0, 0.0, 0.0, None
        self._lines += 1
        limited = alone is not None and steps > 1 and waited > 0.1 * seconds and alone < 0.8 * seconds / steps
        self._limited_lines = self._limited_lines + 1 if limited else 0
        if alone is None or self._limited_lines < 2 or self._lines <= self._quiet_until:
            return None
        self._quiet_until = self._lines + _QUIET_LINES
        delivered, possible = steps * self._batch_size / seconds, self._batch_size / alone
        return (
            f"The loader limits training: it delivers {delivered:.3g} images/s, and the step could do {possible:.3g}. "
            + self._advice()
        )

    def _advice(self) -> str:
        cores, threads = usable_cores(), num_threads(self._config) * max(1, self._config.num_workers)
        if threads < cores:
            return f"Set data.num_threads=0 for a thread on each of the {cores} cores; now there are {threads}."
        return f"All {cores} cores read images already: give the run more of them, or store the images smaller."
