"""Sends batches to the devices one step ahead, and counts the images that could not be read."""

from collections.abc import Callable, Iterator

from jax.sharding import Mesh

from detr_jax.config import DataConfig
from detr_jax.data import DataError, Source
from detr_jax.distributed import gathered
from detr_jax.sharding import shard_rows
from detr_jax.structures import Batch, BatchInputs

_NAMED = 3  # skipped images that are reported by name


class Prefetch:
    """An iterator over `BatchInputs` on the devices.

    The given batches hold the `detr_jax.sharding.own_rows` of this process.

    Raises while it is iterated:
      DataError: more images were skipped than ``config.max_skipped`` allows, or the stream raised it.
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
        """The number of images that this process received."""
        self.skipped = 0
        """The number of these images that replaced an image that could not be read."""
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
        """The number of images skipped in all processes. All processes must call this together.

        Raises:
          DataError: there are too many.
        """
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
        """Why an image cannot be read. It is read again for that, as another process may have read it before."""
        try:
            self._source[list(self._source.image_ids).index(image_id)]
        except DataError as error:
            return str(error)
        return f"image {image_id} could be read when it was tried again."
