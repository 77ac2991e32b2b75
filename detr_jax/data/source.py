"""What a data set is to the rest: samples by index, sizes without reading a pixel, annotations to be judged by."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image


class DataError(ValueError):
    """Data that cannot be used; the message names the file, field or id and what would be right."""


class SizeMismatch(DataError):
    """An image that has another size than its annotations say."""


class Faults:
    """Faults of the data, counted by kind, with the first ones by name.

    ``errors`` end a training; what is in ``counts`` was mended, as its kind says.

    Args:
      where: what the data is, as messages call it.
      skip: whether images that cannot even be opened are left out, and are no error.
    """

    NAMED = 3

    def __init__(self, where: str, *, skip: bool = False):
        self.where = where
        self.skip = skip
        self.left_out = 0
        """Images that cannot be opened, of those that are counted as mended."""
        self.counts: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.first: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, kind: str, name: str) -> None:
        """Counts a fault that was mended, and keeps its name if it is among the first."""
        self.counts[kind] += 1
        self._keep(kind, name)

    def error(self, kind: str, sentence: str) -> None:
        """Counts a fault that cannot be mended; the sentence, without full stop, names it and what would be right."""
        self.errors[kind] += 1
        self._keep(kind, sentence)

    def unopened(self, kind: str, sentence: str) -> None:
        """Counts an image of which not even the size can be read, which the reader leaves out."""
        if self.skip:
            self.left_out += 1
            self.add(f"{kind} were left out", sentence)
        else:
            self.error(kind, sentence)

    def raise_first(self) -> None:
        """Raises the first error as a `DataError`, if there is one."""
        for kind in self.errors:
            raise DataError(f"{self.where}: {self.first[kind][0]}.")

    def sentences(self) -> list[str]:
        """One sentence a kind of what was mended."""
        return self._sentences(self.counts)

    def error_sentences(self) -> list[str]:
        """One sentence a kind of error."""
        return self._sentences(self.errors)

    def _keep(self, kind: str, name: str) -> None:
        if len(self.first[kind]) < self.NAMED:
            self.first[kind].append(name)

    def _sentences(self, counts: collections.Counter[str]) -> list[str]:
        return [
            f"{self.where}: {count} {kind} ({'; '.join(self.first[kind])}{'; ...' if count > self.NAMED else ''})."
            for kind, count in counts.items()
        ]


class Objects(NamedTuple):
    """The objects of an image that a model trains on. Dimension: ``n`` objects."""

    boxes: np.ndarray
    """[n, 4] float32, xyxy in pixels of the image, within it and with area."""
    labels: np.ndarray
    """[n] int32."""


class Sample(NamedTuple):
    """An image with its objects. Dimensions: ``H, W`` pixels."""

    image: np.ndarray
    """[H, W, 3] uint8, RGB."""
    objects: Objects


class Source(Protocol):
    """A random-access data set."""

    @property
    def categories(self) -> dict[int, str]:
        """Names of the labels that occur."""

    @property
    def image_ids(self) -> Sequence[int]:
        """The id of each image, by index."""

    @property
    def sizes(self) -> np.ndarray:
        """[images, 2] int, (height, width) in pixels, known without reading the images."""

    @property
    def max_objects(self) -> int:
        """The most objects that an image has."""

    @property
    def faults(self) -> Faults:
        """What was found wrong with the annotations."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """An image and the objects to train on; crowds are not among them."""

    def objects(self, index: int) -> Objects:
        """The objects of an image to train on, without its pixels."""

    def ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO's JSON form, crowds included, for the evaluation."""


@runtime_checkable
class PictureSource(Source, Protocol):
    """A data set that can decode an image for the size that is needed of it."""

    def picture(self, index: int, least: tuple[int, int] | None = None) -> Image.Image:
        """The image alone, RGB; with ``least``, perhaps at a smaller scale, as `detr_jax.data.images.decode` says."""
