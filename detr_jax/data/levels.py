"""Convert pictures to 8 bits per channel, according to the range of their levels."""

from typing import Any

import numpy as np
from PIL import Image

from detr_jax.data.source import DataError

_BITS_PER_SAMPLE, _SAMPLE_FORMAT, _LARGEST_SAMPLE = 258, 339, 341  # tags of TIFF


def to_rgb(picture: Image.Image, name: str, max_level: float = 0) -> Image.Image:
    """Converts a decoded picture to RGB with 8 bits per channel, and removes the transparency from its ``info``.

    Grey pictures of more than 8 bits are scaled so that their highest possible level becomes 255. This level is
    ``max_level``. If it is 0, `stated_level` gives the level of the file.

    Raises:
      DataError: the range of the levels is unknown, or a level is outside of the range.
    """
    if has_levels(picture):
        levels = np.asarray(picture)
        highest = max_level or stated_level(picture)
        if not highest:
            raise DataError(
                f"{name} has {_kind(picture)} levels ({levels.min():g} to {levels.max():g}), and the file does not say "
                "their range: set data.max_level to the highest level that can occur, such as 255 or 4095, or "
                "convert it to 8 bits per channel."
            )
        if not (levels.min() >= 0 and levels.max() <= highest):
            raise DataError(
                f"{name} has levels from {levels.min():g} to {levels.max():g}, beyond the range of 0 to {highest:g}: "
                "set data.max_level to the highest level that can occur, or convert it to 8 bits per channel."
            )
        if highest == 0xFFFF and levels.dtype.kind != "f":  # exact, as 257 x 255 is 65535
            scaled = (levels.astype(np.uint32) + 128) // 257
        else:
            scaled = np.rint(levels.astype(np.float64) * (255 / highest))
        picture = Image.fromarray(scaled.astype(np.uint8))
    picture.info.pop("transparency", None)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def has_levels(picture: Image.Image) -> bool:
    """Whether a picture is grey with more than 8 bits, or with decimal levels."""
    return picture.mode.startswith(("I", "F"))


def stated_level(picture: Image.Image) -> float:
    """The highest level that can occur in a grey picture of more than 8 bits, from its file. 0 if it is unknown.

    A TIFF file states how many bits of a sample are used, and may state the highest sample. Without such a statement,
    16 bits are taken to be fully used. This holds for PNG too: its chunk sBIT describes the samples before they were
    scaled to 16 bits. Files with 32-bit or decimal levels state no range.
    """
    tags: Any = getattr(picture, "tag_v2", {})
    if stated := tags.get(_LARGEST_SAMPLE):
        return float(np.max(stated))
    if bits := tags.get(_BITS_PER_SAMPLE):
        bits = int(np.max(bits))
        return 2**bits - 1 if bits <= 16 and picture.mode != "F" else 0
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        return 0xFFFF
    return 0


def _kind(picture: Image.Image) -> str:
    return "decimal" if picture.mode == "F" else "32-bit"
