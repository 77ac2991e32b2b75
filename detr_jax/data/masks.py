"""`Masks`: the masks of the objects of an image, which are computed when a batch needs them.

A change of an image's size or shape is a choice of rows and columns: of each row and column of the new image, the one
of the stored image that it shows. Masks follow it exactly, by nearest neighbours as in the original.

Dimensions: ``n`` objects, ``H, W`` pixels of the stored image, ``h, w`` pixels after the changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import numpy as np

from detr_jax.masks import ROWS_PER_BYTE


class MaskSource(Protocol):
    """Where the masks of the objects of an image come from."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""

    def __len__(self) -> int: ...

    def bitmap(self, index: int) -> np.ndarray:
        """The mask of an object, [H, W] uint8 of 0 and 1, or bool.

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
            place[:] = self.source.bitmap(index)[np.ix_(self.rows, self.columns)]
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
            bitmap = self.source.bitmap(index)
            first_row, rows = _within(self.rows, np.asarray(bitmap.any(axis=1)), ROWS_PER_BYTE)
            first_column, columns = _within(self.columns, np.asarray(bitmap.any(axis=0)), 1)
            if not len(rows) or not len(columns):
                continue
            # columns first, because decoded masks are stored column by column
            part = bitmap.T.view(np.uint8).take(columns, axis=0).take(rows, axis=1)
            bits = np.packbits(part, axis=1, bitorder="little").T
            first_byte = first_row // ROWS_PER_BYTE
            place[first_byte : first_byte + len(bits), first_column : first_column + len(columns)] = bits
        return found


def _within(shown: np.ndarray, occupied: np.ndarray, multiple: int) -> tuple[int, np.ndarray]:
    """The part of ``shown`` between the first and the last occupied row or column.

    Returns:
      The first position, rounded down to a multiple, and the part of ``shown`` from there on.
    """
    places = np.flatnonzero(occupied[shown])
    if not len(places):
        return 0, shown[:0]
    first = int(places[0]) // multiple * multiple
    return first, shown[first : int(places[-1]) + 1]


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

    def bitmap(self, index: int) -> np.ndarray:
        """The mask of an object, [H, W] bool."""
        found: np.ndarray = self.masks[index]
        return found


@dataclass(frozen=True, eq=False)
class Segmentations:
    """Masks in COCO's forms: polygons, or run lengths that are compressed or not. A `MaskSource`."""

    texts: Sequence[bytes]
    """[n] the JSON of each object's ``segmentation``."""
    size: tuple[int, int]
    """(H, W) in pixels."""

    def __len__(self) -> int:
        return len(self.texts)

    def bitmap(self, index: int) -> np.ndarray:
        """The mask of an object, [H, W] uint8."""
        from faster_coco_eval.core import mask as coco_mask  # only readers of masks need it

        found: np.ndarray = coco_mask.decode(run_lengths(self.texts[index], self.size))
        return found


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
    polygons = [polygon for polygon in found if len(polygon) >= 6]
    if not polygons:  # an object without a usable polygon has no pixel
        return dict(coco_mask.encode(np.zeros((*size, 1), np.uint8, order="F"))[0])
    # one by one, because the library reads four numbers at the beginning of a list as a box
    return dict(coco_mask.merge([coco_mask.frPyObjects([polygon], *size)[0] for polygon in polygons]))


def encoded(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask [H, W] bool, a dictionary with ``size`` and ``counts`` as bytes."""
    from faster_coco_eval.core import mask as coco_mask

    return dict(coco_mask.encode(np.asfortranarray(mask).view(np.uint8)[..., None])[0])


def as_text(runs: dict[str, Any]) -> dict[str, Any]:
    """Run lengths whose counts are a text, as JSON needs it."""
    counts = runs["counts"]
    return {"size": list(runs["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def decoded(runs: dict[str, Any]) -> np.ndarray:
    """The mask [H, W] bool of COCO's compressed run lengths. ``counts`` may be bytes or a text."""
    from faster_coco_eval.core import mask as coco_mask

    counts = runs["counts"]
    encoded_counts = counts.encode() if isinstance(counts, str) else counts
    found: np.ndarray = coco_mask.decode({"size": list(runs["size"]), "counts": encoded_counts})
    return found.view(bool)
