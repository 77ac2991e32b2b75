"""Panoptic images: the segment that each pixel belongs to, as COCO's PNG files store it (Kirillov et al., 2019).

A pixel holds the id ``R + 256 G + 65536 B`` of its segment. 0 is void: the pixel belongs to none.

Dimensions: ``H, W`` pixels, ``s`` segments.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from detr_jax.data.images import UNREADABLE, check_pixels, open_picture
from detr_jax.data.masks import Part, cropped
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

    def __len__(self) -> int:
        return len(self.segment_ids)

    def part(self, index: int) -> Part:
        """The part of the image that holds a segment.

        Raises:
          DataError: the file cannot be read, or has no pixel of the segment.
        """
        wanted = int(self.segment_ids[index])
        found = cropped(self.ids == wanted)
        if not found.bitmap.size:
            raise DataError(f"{self.name} has no pixel with the id {wanted}, which its JSON lists.")
        return found


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
            pixels = np.asarray(picture.convert("RGBA"))  # four bytes, so that a pixel is one number
    except FileNotFoundError:
        raise DataError(f"The panoptic file {path} does not exist, although the annotations list it.") from None
    except (UnidentifiedImageError, MemoryError, *UNREADABLE) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"The panoptic file {path} cannot be decoded ({error}): replace it.") from None
    return pixels.view("<i4")[..., 0] & 0xFFFFFF


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
