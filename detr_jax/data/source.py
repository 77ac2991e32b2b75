"""The interface of a data set: samples by index, sizes that are known without reading pixels, ground truth, faults."""

import collections
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from detr_jax.data.masks import Bitmaps, Masks
from detr_jax.returned import described


class DataError(ValueError):
    """The data cannot be used. The message names the file, field or id, and says what would be right."""


class SizeMismatch(DataError):
    """The size of an image differs from its annotated size."""


class Faults:
    """Faults of the data, counted by kind. The names of the first ones are kept.

    ``errors`` stop a training. ``counts`` are faults that were handled, and their kind says how. ``notes`` are not
    faults, but worth knowing. For example, crowds are not trained on. ``doubts`` are whole sentences about the data
    set.

    Args:
      where: the name of the data in messages.
      skip: whether images that cannot be opened are dropped. If False, they are errors.
    """

    NAMED = 3

    def __init__(self, where: str, *, skip: bool = False):
        self.where = where
        self.skip = skip
        self.left_out = 0
        """The number of images that cannot be opened and were dropped. ``counts`` includes them."""
        self.counts: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.notes: collections.Counter[str] = collections.Counter()
        self.doubts: list[str] = []
        self.objects_checked = False
        """Whether the objects of the data set have been checked, so that they are not counted twice."""
        self.first: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, kind: str, name: str) -> None:
        """Counts a fault that was handled, and keeps its name if it is among the first."""
        self._count(self.counts, kind, [name])

    def note(self, kind: str, name: str) -> None:
        """Counts something worth knowing, and keeps its name if it is among the first."""
        self._count(self.notes, kind, [name])

    def error(self, kind: str, sentence: str) -> None:
        """Counts an error. The sentence has no full stop. It names the place and says what would be right."""
        self._count(self.errors, kind, [sentence])

    def add_all(self, kind: str, number: int, names: Iterable[str]) -> None:
        """Counts ``number`` faults that were handled. Only the first of ``names`` are computed."""
        self._count(self.counts, kind, names, number)

    def note_all(self, kind: str, number: int, names: Iterable[str]) -> None:
        """Counts ``number`` notes. Only the first of ``names`` are computed."""
        self._count(self.notes, kind, names, number)

    def error_all(self, kind: str, number: int, sentences: Iterable[str]) -> None:
        """Counts ``number`` errors. Only the first of ``sentences`` are computed."""
        self._count(self.errors, kind, sentences, number)

    def unopened(self, kind: str, sentence: str) -> None:
        """Counts an image whose size cannot be read. The reader drops the image."""
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
    """[n, 4] float32, xyxy in pixels of the image. Boxes are inside of the image and their area is above 0."""
    labels: np.ndarray
    """[n] int32."""
    masks: Masks | None = None
    """The masks of the objects. An array [n, H, W] bool, in pixels of the image, is accepted too. None: they are not
    read."""

    def __post_init__(self) -> None:
        """Gives the boxes of an image without objects, such as an empty list, the shape [0, 4]."""
        if not np.size(self.boxes):
            object.__setattr__(self, "boxes", np.zeros((0, 4), np.float32))
        if self.masks is not None and not isinstance(self.masks, Masks):
            masks = np.asarray(self.masks)
            if masks.ndim != 3 or masks.dtype.kind not in "biuf":
                raise DataError(f"The masks are {described(masks)}: they must be [n, H, W], bool.")
            object.__setattr__(self, "masks", Masks.of(Bitmaps(masks.astype(bool))))


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its objects. Dimensions: ``H, W`` pixels."""

    image: np.ndarray
    """[H, W, 3] uint8, RGB."""
    objects: Objects


class Source(Protocol):
    """A random-access data set.

    Your own data set does not need ``faults``. `complete_source` adds empty ones when it is opened.
    """

    @property
    def categories(self) -> dict[int, str]:
        """The name of each label."""

    @property
    def category_ids(self) -> dict[int, int]:
        """The category id in the files of each label. Empty if the labels are the ids."""

    @property
    def image_ids(self) -> Sequence[int] | np.ndarray:
        """The id of each image, by index."""

    @property
    def sizes(self) -> np.ndarray:
        """[images, 2] int, (height, width) in pixels. They are known without reading the images."""

    @property
    def max_objects(self) -> int:
        """The largest number of objects in an image."""

    @property
    def faults(self) -> Faults:
        """What was found wrong with the annotations."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """An image and the objects to train on, without crowds."""

    def objects(self, index: int) -> Objects:
        """The objects of an image to train on, without its pixels."""

    def ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO's JSON form, crowds included, for the evaluation."""


@runtime_checkable
class PictureSource(Source, Protocol):
    """A data set that can decode an image at a smaller scale if the full scale is not needed."""

    def picture(self, index: int, least: tuple[int, int] | None = None) -> Image.Image:
        """The image in RGB, without its objects.

        With ``least``, it may have a smaller scale (``min_size`` of `detr_jax.data.images.decode`).
        """


def complete_source(source: Any, where: str) -> Source:
    """Checks that a data set has the members of `Source`, and gives it empty ``faults`` if it has none.

    Args:
      source: the data set that ``open`` of its configuration returned.
      where: the name of the data in messages.

    Raises:
      DataError: a member is missing or has the wrong shape. ``faults`` may be missing if it can be set.
    """
    members = ("categories", "category_ids", "image_ids", "sizes", "max_objects", "objects", "ground_truth")
    missing = [name for name in (*members, "__len__", "__getitem__") if not hasattr(source, name)]
    if missing:
        raise DataError(
            f"{where} was opened as a {type(source).__name__}, which has no {', '.join(missing)}: it must have all "
            "members of detr_jax.data.Source."
        )
    sizes, number = source.sizes, len(source)
    if not isinstance(sizes, np.ndarray) or (number and sizes.dtype.kind not in "iu"):
        raise DataError(
            f"{where} was opened as a {type(source).__name__}, whose sizes are {described(sizes)}: they must be an "
            f"array of whole numbers [{number}, 2], (height, width) in pixels."
        )
    if (number and sizes.shape != (number, 2)) or len(source.image_ids) != number:
        raise DataError(
            f"{where} was opened as a {type(source).__name__} with {number} images, but sizes has the shape "
            f"{list(sizes.shape)} and image_ids has {len(source.image_ids)} entries: they must be [{number}, 2], "
            f"(height, width) in pixels, and {number}."
        )
    if not hasattr(source, "faults"):
        try:
            source.faults = Faults(where)
        except AttributeError:  # a frozen class, or one with slots
            raise DataError(
                f"{where} was opened as a {type(source).__name__}, which has no faults and accepts no new attributes: "
                f"give it faults=detr_jax.data.Faults({where!r})."
            ) from None
    return source
