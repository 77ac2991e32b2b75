"""Panoptic images: the segment that each pixel belongs to, as COCO's PNG files store it (Kirillov et al., 2019).

A pixel holds the id ``R + 256 G + 65536 B`` of its segment. 0 is void: the pixel belongs to none.

Dimensions: ``H, W`` pixels, ``s`` segments, ``r`` runs.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from detr_jax.data.images import UNREADABLE, check_pixels, open_picture
from detr_jax.data.masks import Part
from detr_jax.data.source import DataError

_LARGEST_ID = 2**24


@dataclass(frozen=True, eq=False)
class Panoptic:
    """The segments of an image."""

    ids: np.ndarray
    """[H, W] int32, the id of the segment of each pixel; 0 for none."""
    segment_ids: np.ndarray
    """[s] int64."""
    labels: np.ndarray
    """[s] int64, the label of each segment."""
    areas: np.ndarray
    """[s] int64, in pixels."""
    crowds: np.ndarray
    """[s] bool, segments of several objects that are not told apart."""


@dataclass(frozen=True, eq=False)
class SegmentIds:
    """Masks that are the pixels of some ids. A `detr_jax.data.masks.MaskSource`. The file is read for the first one."""

    read: Callable[[], np.ndarray]
    """Returns the ids [H, W] int32. May raise a `DataError`."""
    size: tuple[int, int]
    """(H, W) in pixels."""
    segment_ids: np.ndarray
    """[n] int64."""
    name: str
    """What messages call the file."""

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """[H, W] int32."""
        return self.read()

    @functools.cached_property
    def runs(self) -> "Runs":
        """The runs of equal ids in the rows."""
        return Runs.of(self.ids)

    def __len__(self) -> int:
        return len(self.segment_ids)

    def part(self, index: int) -> Part:
        """The part of the image that holds a segment.

        Raises:
          DataError: the file cannot be read, or has no pixel of the segment.
        """
        wanted = int(self.segment_ids[index])
        top, bottom, left, right = self.runs.bounds(wanted)
        if top == bottom:
            raise DataError(f"{self.name} has no pixel with the id {wanted}, which its JSON lists.")
        return Part(top, left, self.ids[top:bottom, left:right] == wanted)


@dataclass(frozen=True, eq=False)
class Runs:
    """Pixels of equal ids that follow one another in a row. A photo has a hundredth as many runs as pixels."""

    ids: np.ndarray
    """[r] int32, the id of each run, in the order of the pixels."""
    rows: np.ndarray
    """[r] int64, the row of each run."""
    starts: np.ndarray
    """[r] int64, the first column of each run."""
    ends: np.ndarray
    """[r] int64, the column behind each run."""

    @classmethod
    def of(cls, ids: np.ndarray) -> "Runs":
        """The runs of an image, for its ids [H, W] int32."""
        begins = np.ones(ids.shape, bool)
        np.not_equal(ids[:, 1:], ids[:, :-1], out=begins[:, 1:])
        first = np.flatnonzero(begins)
        rows, starts = np.divmod(first, ids.shape[1])
        ends = np.append(first[1:], ids.size) - rows * ids.shape[1]
        return cls(ids.ravel()[first], rows, starts, ends)

    def bounds(self, wanted: int) -> tuple[int, int, int, int]:
        """The first row of an id, the row behind its last, and the same for its columns; zeros if it has no pixel."""
        which = np.flatnonzero(self.ids == wanted)
        if not len(which):
            return 0, 0, 0, 0
        rows = self.rows[which]
        return int(rows[0]), int(rows[-1]) + 1, int(self.starts[which].min()), int(self.ends[which].max())


def read_png(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The ids [H, W] int32 of a panoptic PNG.

    Args:
      path: the file.
      size: the (height, width) of its image in pixels.

    Raises:
      DataError: the file is missing or damaged, has another size, or stores no ids.
    """
    try:
        with open_picture(path) as picture:
            check_pixels(picture, f"The panoptic file {path}")
            if (picture.height, picture.width) != tuple(size):
                raise DataError(
                    f"The panoptic file {path} has {picture.height} x {picture.width} pixels (height x width), but its "
                    f"image has {size[0]} x {size[1]}: both must be equal."
                )
            if picture.mode not in ("RGB", "RGBA"):
                kind = "a palette" if picture.mode == "P" else f"the mode {picture.mode}"
                raise DataError(
                    f"The panoptic file {path} has {kind}: it must be an RGB image whose pixels hold the id "
                    "R + 256 G + 65536 B of their segment."
                )
            # four bytes, so that a pixel is one number
            pixels = picture.tobytes("raw", "RGBX" if picture.mode == "RGB" else "RGBA")
    except FileNotFoundError:
        raise DataError(f"The panoptic file {path} does not exist, although the annotations list it.") from None
    except (MemoryError, *UNREADABLE) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"The panoptic file {path} cannot be decoded ({error}): replace it.") from None
    return np.frombuffer(pixels, "<i4").reshape(size) & 0xFFFFFF


def write_png(path: Path, ids: np.ndarray) -> None:
    """Writes ids [H, W], from 0 to 2**24 - 1, as a panoptic PNG."""
    assert 0 <= ids.min(initial=0) <= ids.max(initial=0) < _LARGEST_ID
    channels = np.stack([ids & 0xFF, ids >> 8 & 0xFF, ids >> 16 & 0xFF], axis=-1)
    Image.fromarray(channels.astype(np.uint8)).save(path)


def check_ids(found: Panoptic, name: str) -> None:
    """Checks that the pixels and the list of segments name the same ids, and the areas.

    Raises:
      DataError: an id is missing in one of them, or an area differs.
    """
    ids, counts = np.unique(found.ids, return_counts=True)
    pixels = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    there, listed = pixels.keys() - {0}, set(found.segment_ids.tolist())
    if unlisted := sorted(there - listed):
        raise DataError(f"{name} has pixels with the id {unlisted[0]}, which its JSON does not list.")
    if absent := sorted(listed - there):
        raise DataError(f"{name} has no pixel with the id {absent[0]}, which its JSON lists.")
    for segment, area in zip(found.segment_ids.tolist(), found.areas.tolist(), strict=True):
        if pixels[segment] != area:
            raise DataError(
                f"{name} has {pixels[segment]} pixels with the id {segment}, and its JSON has the area {area}."
            )
