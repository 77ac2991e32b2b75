"""The interface of a data set: samples by index, sizes known without reading a pixel, ground truth, faults."""

import collections
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image


class DataError(ValueError):
    """Data that cannot be used; the message names the file, field or id and what would be right."""


class SizeMismatch(DataError):
    """An image that has another size than its annotations say."""


class Faults:
    """Faults of the data, counted by kind, with the first ones by name.

    ``errors`` stop a training. What is in ``counts`` was handled, as its kind says. What is in ``notes`` is not wrong,
    but a reader should know it: that crowds are not trained on, for example. ``doubts`` are whole sentences about the
    data set.

    Args:
      where: the name of the data in messages.
      skip: whether images that cannot even be opened are dropped and are not an error.
    """

    NAMED = 3

    def __init__(self, where: str, *, skip: bool = False):
        self.where = where
        self.skip = skip
        self.left_out = 0
        """Images that cannot be opened and were dropped; they are in ``counts`` too."""
        self.counts: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.notes: collections.Counter[str] = collections.Counter()
        self.doubts: list[str] = []
        self.first: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, kind: str, name: str) -> None:
        """Counts a fault that was handled, and keeps its name if it is among the first."""
        self._count(self.counts, kind, [name])

    def note(self, kind: str, name: str) -> None:
        """Counts something worth knowing, and keeps its name if it is among the first."""
        self._count(self.notes, kind, [name])

    def error(self, kind: str, sentence: str) -> None:
        """Counts an error; the sentence, without full stop, names the place and says what would be right."""
        self._count(self.errors, kind, [sentence])

    def add_all(self, kind: str, number: int, names: Iterable[str]) -> None:
        """Counts ``number`` faults that were handled; only the first of ``names`` are computed."""
        self._count(self.counts, kind, names, number)

    def note_all(self, kind: str, number: int, names: Iterable[str]) -> None:
        """Counts ``number`` notes; only the first of ``names`` are computed."""
        self._count(self.notes, kind, names, number)

    def error_all(self, kind: str, number: int, sentences: Iterable[str]) -> None:
        """Counts ``number`` errors; only the first of ``sentences`` are computed."""
        self._count(self.errors, kind, sentences, number)

    def unopened(self, kind: str, sentence: str) -> None:
        """Counts an image of which not even the size can be read, which the reader drops."""
        if self.skip:
            self.left_out += 1
            self.add(f"{kind} were dropped", sentence)
        else:
            self.error(kind, sentence)

    def raise_first(self) -> None:
        """Raises the first error as a `DataError`, if there is one."""
        for kind in self.errors:
            raise DataError(f"{self.where}: {self.first[kind][0]}.")

    def sentences(self) -> list[str]:
        """One sentence per kind of fault that was handled."""
        return self._sentences(self.counts)

    def note_sentences(self) -> list[str]:
        """The doubts, and one sentence per kind of note."""
        return [f"{self.where}: {doubt}" for doubt in self.doubts] + self._sentences(self.notes)

    def error_sentences(self) -> list[str]:
        """One sentence per kind of error."""
        return self._sentences(self.errors)

    def _count(
        self, counts: collections.Counter[str], kind: str, names: Iterable[str], number: int | None = None
    ) -> None:
        first = self.first[kind]
        room = self.NAMED - len(first)
        first += itertools.islice(names, max(room, 0))
        counts[kind] += 1 if number is None else number

    def _sentences(self, counts: collections.Counter[str]) -> list[str]:
        return [
            f"{self.where}: {kind}: {count} ({'; '.join(self.first[kind])}{'; ...' if count > self.NAMED else ''})."
            for kind, count in counts.items()
        ]


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of an image that a model trains on. Dimension: ``n`` objects."""

    boxes: np.ndarray
    """[n, 4] float32, xyxy in pixels of the image, within it and with area."""
    labels: np.ndarray
    """[n] int32."""


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its objects. Dimensions: ``H, W`` pixels."""

    image: np.ndarray
    """[H, W, 3] uint8, RGB."""
    objects: Objects


class Source(Protocol):
    """A random-access data set.

    A data set of one's own need not have ``faults``: it gets an empty one when it is opened (`complete_source`).
    """

    @property
    def categories(self) -> dict[int, str]:
        """Name by label."""

    @property
    def category_ids(self) -> dict[int, int]:
        """Category id in the files by label; empty if the labels are the ids."""

    @property
    def image_ids(self) -> Sequence[int] | np.ndarray:
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


def complete_source(source: Any, where: str) -> Source:
    """Check that a data set has what `Source` lists, and give it empty ``faults`` if it has none.

    Args:
      source: what ``open`` of a data set's configuration returned.
      where: the name of the data in messages.

    Raises:
      DataError: a member is missing, or ``faults`` is and cannot be set.
    """
    members = ("categories", "category_ids", "image_ids", "sizes", "max_objects", "objects", "ground_truth")
    missing = [name for name in (*members, "__len__", "__getitem__") if not hasattr(source, name)]
    if missing:
        raise DataError(
            f"{where} was opened as a {type(source).__name__}, which has no {', '.join(missing)}: it must have what "
            "detr_jax.data.Source lists."
        )
    if not hasattr(source, "faults"):
        try:
            source.faults = Faults(where)
        except AttributeError:  # a frozen class, or one with slots
            raise DataError(
                f"{where} was opened as a {type(source).__name__}, which has no faults and takes no new attributes: "
                f"give it faults=detr_jax.data.Faults({where!r})."
            ) from None
    return source
