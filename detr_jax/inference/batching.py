"""Batches of images for prediction: images are grouped by bucket and then read into arrays."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detr_jax.config import Config, DataConfig
from detr_jax.data.buckets import Bucket
from detr_jax.data.images import ImageLike, decode, exif_rule, open_image
from detr_jax.data.placement import Placement, lay, place
from detr_jax.data.source import DataError
from detr_jax.memory import OutOfMemoryError, fitting
from detr_jax.results import ImageDetections

CUT = "Make the image smaller, or cut it into parts."


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """The result for one image of a stream."""

    index: int
    """Position of the image in the stream, from 0."""
    image: np.ndarray | None
    """[H, W, 3] uint8, RGB, the image that the boxes refer to; None if it could not be read or predicted."""
    result: ImageDetections | DataError | OutOfMemoryError
    """The detections, or the error if the image could not be read or predicted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WaitingImage:
    """An image that has a bucket and is not read yet. Sizes are (height, width) in pixels."""

    index: int
    """Position of the image in the stream, from 0."""
    image: Path | Image.Image
    original_size: tuple[int, int]
    placement: Placement

    @property
    def name(self) -> str:
        """The name of the image in messages."""
        return str(self.image) if isinstance(self.image, Path) else f"Image {self.index}"

    def read(self, bucket: np.ndarray, data: DataConfig) -> Image.Image:
        """Reads the image and writes it, resized, into ``bucket`` [H, W, 3] uint8; returns it in its original size.

        Raises:
          DataError: the image cannot be decoded.
          OutOfMemoryError: the image does not fit into memory.
        """
        with fitting(f"{self.name}, {self.original_size[0]} x {self.original_size[1]} pixels,", CUT):
            picture = self.image
            if isinstance(picture, Path):
                picture = decode(picture, exif=exif_rule(data), max_level=data.max_level)
            lay(picture, self.placement, bucket)
        return picture


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadBatch:
    """Images of one bucket as arrays, padded to the batch size ``B`` with empty images."""

    images: np.ndarray
    """[B, H, W, 3] uint8, RGB, zero-padded at the bottom and right."""
    valid_sizes: np.ndarray
    """[B, 2] int32, (height, width) in pixels of the image inside its bucket."""
    original_sizes: np.ndarray
    """[B, 2] int32, (height, width) in pixels before any resizing."""
    pictures: list[Image.Image | DataError | OutOfMemoryError]
    """Each image in its original size, or the error if it could not be read."""


def open_waiting(image: ImageLike, index: int, name: str, config: Config, buckets: Sequence[Bucket]) -> WaitingImage:
    """Opens an image and chooses its bucket. Only the header of a file is read.

    Raises:
      DataError: it is not an image; the message begins with ``name``, or the path of a file.
      OutOfMemoryError: the image does not fit into memory.
    """
    data = config.data
    with fitting(name, CUT):
        opened, size = open_image(image, name, exif=exif_rule(data), max_level=data.max_level)
    return WaitingImage(index=index, image=opened, original_size=size, placement=place(size, config, buckets))


def batches_by_bucket(
    images: Iterable[ImageLike], config: Config, buckets: Sequence[Bucket], batch_size: int
) -> Iterator[list[WaitingImage] | Answer]:
    """Groups images by bucket.

    Yields:
      Lists of at most ``batch_size`` images of one bucket, as soon as a bucket has that many, and the rest at the end.
      An image that cannot be opened is yielded at once as an `Answer` with the error.
    """
    waiting: dict[Bucket, list[WaitingImage]] = {}
    for index, image in enumerate(images):
        try:
            opened = open_waiting(image, index, f"Image {index}", config, buckets)
        except (DataError, OutOfMemoryError) as error:
            yield Answer(index=index, image=None, result=error)
            continue
        group = waiting.setdefault(opened.placement.bucket, [])
        group.append(opened)
        if len(group) == batch_size:
            yield waiting.pop(opened.placement.bucket)
    yield from waiting.values()


def read_batch(
    waiting: Sequence[WaitingImage], batch_size: int, data: DataConfig, threads: ThreadPoolExecutor
) -> ReadBatch:
    """Reads images of one bucket, several at a time. Images that cannot be read stay empty.

    Raises:
      OutOfMemoryError: the arrays of the batch do not fit into memory.
    """
    bucket = waiting[0].placement.bucket
    with bucket_fitting(bucket, batch_size, data):
        images = np.zeros((batch_size, *bucket, 3), np.uint8)
    valid_sizes = np.full((batch_size, 2), bucket, np.int32)
    original_sizes = np.ones((batch_size, 2), np.int32)

    def fill(row: int, one: WaitingImage) -> Image.Image | DataError | OutOfMemoryError:
        try:
            picture = one.read(images[row], data)
        except (DataError, OutOfMemoryError) as error:
            return error
        valid_sizes[row], original_sizes[row] = one.placement.size, one.original_size
        return picture

    pictures = list(threads.map(fill, range(len(waiting)), waiting))
    return ReadBatch(images=images, valid_sizes=valid_sizes, original_sizes=original_sizes, pictures=pictures)


def bucket_fitting(
    bucket: Bucket, images: int, data: DataConfig, what: str = "The bucket"
) -> AbstractContextManager[None]:
    """Raises an `OutOfMemoryError` with advice if memory runs out inside, about ``images`` images in a bucket."""
    advice = "Use a machine with more memory." if data.val_short_side else CUT
    if images > 1:
        advice = f"Lower batch_size={images}. {advice}"
    return fitting(f"{what} of {bucket[0]} x {bucket[1]} pixels, for {images} image(s),", advice)
