"""`Masks`: the masks of the objects of an image, which are computed when a batch needs them.

A change of an image's size or shape is a choice of rows and columns: of each row and column of the new image, the one
of the stored image that it shows. Masks follow it exactly, by nearest neighbours as in the original.

Dimensions: ``n`` objects, ``H, W`` pixels of the stored image, ``h, w`` pixels after the changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np

from detr_jax.data.run_lengths import decoded
from detr_jax.masks import ROWS_PER_BYTE

_BITS = np.arange(ROWS_PER_BYTE, dtype=np.uint8)[:, None]


class Part(NamedTuple):
    """A mask without the rows and columns around it that hold no pixel of it."""

    top: int
    """The first row, in pixels of the stored image."""
    left: int
    """The first column."""
    bitmap: np.ndarray
    """[h, w] uint8 of 0 and 1, or bool."""


class MaskSource(Protocol):
    """Where the masks of the objects of an image come from."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""

    def __len__(self) -> int: ...

    def part(self, index: int) -> Part:
        """The part of the image that holds the mask of an object; it may be larger than needed.

        Raises:
          DataError: it cannot be read.
        """


@dataclass(frozen=True, eq=False, repr=False)
class Masks:
    """The masks of some objects of an image, after changes of its size and shape."""

    source: MaskSource
    kept: np.ndarray
    """[n] int, the index of each object in ``source``."""
    rows: np.ndarray
    """[h] int, the row of the stored image that each row shows. It never decreases."""
    columns: np.ndarray
    """[w] int, the column of the stored image that each column shows, in ascending or descending order."""

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self.size[0]} x {self.size[1]} pixels)"

    @classmethod
    def of(cls, source: MaskSource) -> "Masks":
        """All masks of a source, unchanged."""
        height, width = source.size
        return cls(source, np.arange(len(source)), np.arange(height), np.arange(width))

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return len(self.rows), len(self.columns)

    def __len__(self) -> int:
        return len(self.kept)

    def select(self, which: np.ndarray) -> "Masks":
        """The masks of some objects: a mask [n] bool, or their indices."""
        return Masks(self.source, self.kept[which], self.rows, self.columns)

    def changed(self, rows: np.ndarray, columns: np.ndarray) -> "Masks":
        """The masks after a change: for each new row and column, the one that it shows of the image before."""
        return Masks(self.source, self.kept, self.rows[rows], self.columns[columns])

    def bitmaps(self) -> np.ndarray:
        """The masks as [n, h, w] bool.

        Raises:
          DataError: a mask cannot be read.
        """
        found = np.zeros((len(self), *self.size), bool)
        for place, index in zip(found, self.kept.tolist(), strict=True):
            top, left, bitmap = self.source.part(index)
            whole = np.zeros(self.source.size, bool)
            whole[top : top + bitmap.shape[0], left : left + bitmap.shape[1]] = bitmap
            place[:] = whole[np.ix_(self.rows, self.columns)]
        return found

    def packed(self) -> np.ndarray:
        """The masks as bits, [n, ceil(h / 8), w] uint8 (`detr_jax.masks.pack_masks`).

        Only the part of the image that holds an object is touched.

        Raises:
          DataError: a mask cannot be read.
        """
        height, width = self.size
        found = np.zeros((len(self), -(-height // ROWS_PER_BYTE), width), np.uint8)
        for place, index in zip(found, self.kept.tolist(), strict=True):
            top, left, bitmap = self.source.part(index)
            first_row, rows = _within(self.rows, top, bitmap.shape[0])
            first_column, columns = _within(self.columns, left, bitmap.shape[1])
            if not len(rows) or not len(columns):
                continue
            # packed between the choice of rows and that of columns, so that there is an eighth of them to choose from
            first_byte, above = divmod(first_row, ROWS_PER_BYTE)
            tall = np.zeros((-(-(above + len(rows)) // ROWS_PER_BYTE), ROWS_PER_BYTE, bitmap.shape[1]), np.uint8)
            tall.reshape(-1, bitmap.shape[1])[above : above + len(rows)] = np.ascontiguousarray(bitmap)[rows]
            bits = np.bitwise_or.reduce(tall << _BITS, axis=1)
            place[first_byte : first_byte + len(bits), first_column : first_column + len(columns)] = bits[:, columns]
        return found


def _within(shown: np.ndarray, first: int, number: int) -> tuple[int, np.ndarray]:
    """Where a line of pixels shows some of the stored ones.

    Args:
      shown: [n] int, the stored pixel that each pixel shows, in ascending or descending order.
      first: the first of the stored pixels.
      number: how many they are.

    Returns:
      The first pixel that shows one of them, and for it and those after it the number of the stored pixel from
      ``first`` on.
    """
    if len(shown) > 1 and shown[0] > shown[-1]:
        end, start = len(shown) - np.searchsorted(shown[::-1], (first, first + number))
    else:
        start, end = np.searchsorted(shown, (first, first + number))
    return int(start), shown[start:end] - first


def cropped(mask: np.ndarray) -> Part:
    """The part of a mask [H, W] bool from its first to its last row and column; empty if it has no pixel."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return Part(0, 0, mask[:0, :0])
    mask = mask[rows[0] : rows[-1] + 1]
    columns = np.flatnonzero(mask.any(axis=0))
    return Part(int(rows[0]), int(columns[0]), mask[:, columns[0] : columns[-1] + 1])


@dataclass(frozen=True, eq=False)
class Bitmaps:
    """Masks that are arrays, [n, H, W] bool. A `MaskSource`."""

    masks: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.masks.shape[1], self.masks.shape[2]

    def __len__(self) -> int:
        return len(self.masks)

    def part(self, index: int) -> Part:
        """The part of the image that holds an object."""
        return cropped(self.masks[index])


@dataclass(frozen=True, eq=False)
class Segmentations:
    """Masks in COCO's forms: polygons, or run lengths that are compressed or not. A `MaskSource`."""

    texts: Sequence[bytes]
    """[n] the JSON of each object's ``segmentation``."""
    size: tuple[int, int]
    """(H, W) in pixels."""

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, index: int) -> Part:
        """The part of the image that holds an object."""
        runs = run_lengths(self.texts[index], self.size)
        bitmap = decoded(runs)
        from faster_coco_eval.core import mask as coco_mask  # only readers of masks need it

        left, top, width, height = map(int, coco_mask.toBbox(runs))
        return Part(top, left, bitmap[top : top + height, left : left + width])


def run_lengths(text: bytes, size: tuple[int, int]) -> dict[str, Any]:
    """The compressed run lengths of a ``segmentation``. Polygons of one object are united.

    Args:
      text: its JSON, which `detr_jax.data.mask_checks` has checked.
      size: (H, W) of the image in pixels.

    Returns:
      COCO's dictionary with ``size`` and ``counts``, which are bytes.
    """
    from faster_coco_eval.core import mask as coco_mask

    found: Any = msgspec.json.decode(text)
    if isinstance(found, dict):
        if isinstance(found["counts"], list):
            return dict(coco_mask.frPyObjects(found, *size))
        return {"size": list(size), "counts": found["counts"].encode()}
    polygons = _with_area(found)
    if not polygons:  # an object without a usable polygon has no pixel
        return dict(coco_mask.encode(np.zeros((*size, 1), np.uint8, order="F"))[0])
    runs = coco_mask.frPyObjects(polygons, *size)
    return dict(runs[0] if len(runs) == 1 else coco_mask.merge(runs))


def _with_area(polygons: list[list[float]]) -> list[list[float]]:
    """The polygons of three corners and more. COCO's library would read four numbers as a box."""
    return [polygon for polygon in polygons if len(polygon) >= 6]


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask [H, W] bool, a dictionary with ``size`` and ``counts`` as bytes."""
    from faster_coco_eval.core import mask as coco_mask

    return dict(coco_mask.encode(np.asfortranarray(mask).view(np.uint8)[..., None])[0])


def as_text(runs: dict[str, Any]) -> dict[str, Any]:
    """Run lengths whose counts are a text, as JSON needs it."""
    counts = runs["counts"]
    return {"size": list(runs["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}
