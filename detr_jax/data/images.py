"""Decoding of image files."""

import io
import math
import os
import stat
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from detr_jax.config import DataConfig
from detr_jax.data.levels import has_levels, stated_level, to_rgb
from detr_jax.data.source import DataError, SizeMismatch

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray
"""An image: the path of a file, a picture of PIL, or an array [H, W, 3] (RGB), [H, W] or [H, W, 1] (grey), uint8."""

ExifRule = Literal["auto", "apply", "ignore"]
"""What to do with an orientation that EXIF notes; see `decode`."""

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNREADABLE = (
    *(UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, EOFError, IndexError, KeyError),
    *(OverflowError, ZeroDivisionError, RuntimeError, Image.DecompressionBombError),
)
"""What Pillow raises on files that somebody or something has damaged."""


def ignore_pillow_warnings() -> None:
    """Turns Pillow's warnings off: what is wrong with an image is said once, by a `DataError`."""
    for category in (UserWarning, Image.DecompressionBombWarning):
        warnings.filterwarnings("ignore", category=category, module=r"PIL\.")


ignore_pillow_warnings()


def decode(
    file: Path | bytes,
    name: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    size_source: str = "the annotation",
    exif: ExifRule = "auto",
    max_level: float = 0,
    least: tuple[int, int] | None = None,
) -> Image.Image:
    """Decodes an image file to RGB with 8 bits a channel.

    Grey, palette, CMYK and other colours are converted. Transparency is dropped, so that a pixel keeps the colour
    that is stored under it, as in the original and in OpenCV. More than 8 bits are scaled to 8
    (`detr_jax.data.levels.to_rgb`). The first frame of an animation is taken.

    Args:
      file: a path, or the content of a file.
      name: how messages call it; the path if not given.
      size: the annotated (height, width) in pixels.
      size_source: how messages call what says ``size``.
      exif: what to do with an orientation that EXIF notes. "auto": apply it, as viewers do, unless only the stored
        pixels have the annotated ``size``, as in COCO, whose boxes belong to the stored pixels. "apply": always apply
        it. "ignore": never apply it.
      max_level: the highest level that can occur in grey images of more than 8 bits; 0: what the file says.
      least: if given, a JPEG that needs no rotation may be decoded to a half, a quarter or an eighth of its sides,
        rounded up, but not below this (height, width); see `covered`.

    Raises:
      SizeMismatch: the image has another size than annotated.
      DataError: the file is missing, cannot be decoded, or has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    name = name or (f"The image file {file}" if isinstance(file, Path) else "An image")
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            stored = (picture.height, picture.width)
            limit = Image.MAX_IMAGE_PIXELS
            if limit and picture.height * picture.width > limit:
                raise DataError(
                    f"{name} has {stored[0]} x {stored[1]} pixels, more than the limit of {limit} "
                    "in all: make it smaller, or cut it into parts."
                )
            turned = is_turned(picture, size, exif)
            if size is not None and size != (_displayed_size(picture) if turned else stored):
                raise SizeMismatch(
                    f"{name} has {stored[0]} x {stored[1]} pixels (height x width), but {size_source} says "
                    f"{size[0]} x {size[1]}: correct the one that is wrong."
                )
            if least is not None and not turned:
                picture.draft("RGB", least[::-1])  # does nothing where it cannot
            if max_level and picture.mode == "RGB" and _is_wide(picture):
                raise DataError(
                    f"{name} has 16 bits in each of three colours, and data.max_level={max_level:g} is for grey images "
                    "only: convert it to 8 bits a channel."
                )
            picture.load()
            stated = to_rgb(picture, name, max_level)
            return _upright(stated, _orientation(picture)) if turned else stated
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name} does not exist, although the annotations list it.") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{name} cannot be decoded (no format of images is recognised): replace it or take it out."
        ) from None
    except MemoryError:
        raise DataError(f"{name} does not fit into memory when it is decoded: make it smaller.") from None
    except _UNREADABLE as error:
        raise DataError(f"{name} cannot be decoded ({error}): replace it or take it out.") from None


def read_size(file: Path | bytes, name: str | None = None, *, rotate: bool = False) -> tuple[int, int]:
    """(height, width) in pixels of an image file, of which nothing but the header is read.

    Args:
      file: a path, or the content of a file.
      name: how messages call it; the path where not given.
      rotate: whether to apply the rotation noted in EXIF.

    Raises:
      DataError: the file is missing, or has no header that can be read.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            return _displayed_size(picture) if rotate else (picture.height, picture.width)
    except UnidentifiedImageError:
        empty = not (len(file) if isinstance(file, bytes) else file.stat().st_size)
        reason = "it is empty" if empty else "no format of images is recognised"
        raise DataError(f"{name or f'The image file {file!s}'} cannot be opened ({reason}).") from None
    except _UNREADABLE as error:
        raise DataError(f"{name or f'The image file {file!s}'} cannot be opened ({error}).") from None


def exif_rule(data: DataConfig) -> ExifRule:
    """The rule of ``data.exif``."""
    return cast(ExifRule, data.exif)


def _orientation(picture: Image.Image) -> int:
    """What EXIF notes, 1 (as it is stored) to 8, where no pixel has to be decoded to find it."""
    if picture.format == "PNG" and not picture.info.keys() & {"exif", "Raw profile type exif"}:
        return 1  # Pillow would look for it behind the pixels
    noted = picture.getexif().get(_EXIF_ORIENTATION, 1)
    return noted if noted in range(1, 9) else 1


def is_turned(picture: Image.Image, size: tuple[int, int] | None, exif: ExifRule) -> bool:
    """Whether `decode` applies the orientation that EXIF notes, if ``size`` is the annotated (height, width)."""
    if exif == "ignore" or _orientation(picture) == 1:
        return False
    stored = (picture.height, picture.width)
    return exif == "apply" or size is None or size != stored or _displayed_size(picture) == stored


def orientation_matters(file: Path | bytes, size: tuple[int, int]) -> str | None:
    """What the annotated (height, width) ``size`` says of an image with an orientation in EXIF.

    Returns:
      "stored" or "displayed" if only the pixels in that form have the size, "open" if both have it, None if EXIF notes
      no orientation or the file cannot be opened.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            if _orientation(picture) == 1:
                return None
            stored, displayed = (picture.height, picture.width), _displayed_size(picture)
    except _UNREADABLE:
        return None
    if stored == displayed:
        return "open"
    return "stored" if size == stored else "displayed"


def level_range(file: Path | bytes) -> tuple[float, float] | None:
    """The highest level of a grey image of more than 8 bits, and the highest that its file says can occur (0: none).

    None for other images, and for files that cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            if not has_levels(picture):
                return None
            return float(np.asarray(picture).max()), stated_level(picture)
    except (*_UNREADABLE, MemoryError):
        return None


def is_dark(file: Path | bytes, max_level: float) -> bool:
    """Whether a grey image of more than 8 bits uses less than an eighth of the levels from 0 to the highest possible.

    ``max_level`` is the highest, or 0: what the file says.
    """
    levels = level_range(file)
    return levels is not None and 0 < levels[0] < (max_level or levels[1]) / 8


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    """A picture with an EXIF orientation, 2 to 8, applied."""
    return picture.transpose(_TURNS[orientation])


def _is_wide(picture: Image.Image) -> bool:
    """Whether an opened colour picture has 16 bits a channel, of which Pillow keeps 8."""
    return any(";16" in str(tile.args) for tile in getattr(picture, "tile", []))


def _displayed_size(picture: Image.Image) -> tuple[int, int]:
    height, width = picture.height, picture.width
    return (width, height) if _orientation(picture) >= 5 else (height, width)


def covered(picture: Image.Image, size: tuple[int, int]) -> tuple[float, float]:
    """(height, width) of that part of a picture which the image covers, in pixels of the picture.

    It is less than the picture where an image of (height, width) ``size`` was decoded to a smaller scale that does not
    divide ``size``: the last row and column then lie partly beyond the image's border.
    """
    scale = 2 ** round(math.log2(max(size) / max(picture.size)))
    return size[0] / scale, size[1] / scale


def has_more_frames(file: Path | bytes) -> bool:
    """Whether an image file is an animation or has several pages, of which `decode` takes the first.

    The further pictures in a camera's JPEG (MPO) do not count. A file that cannot be opened has no more frames.
    """
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            return picture.format != "MPO" and getattr(picture, "is_animated", False)
    except _UNREADABLE:
        return False


def open_image(
    image: ImageLike | Any, name: str, *, exif: ExifRule = "auto", max_level: float = 0
) -> tuple[Path | Image.Image, tuple[int, int]]:
    """A file whose header was read, or a picture in RGB; and its (height, width) in pixels.

    The size of a file is what `decode` gives it with the same ``exif``. Messages call what is not a file ``name``.

    Raises:
      DataError: it is not an image, or a file that cannot be opened.
    """
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        _check_regular(path)
        return path, read_size(path, rotate=exif != "ignore")
    if isinstance(image, Image.Image):
        try:
            picture = to_rgb(image.copy(), name, max_level)
        except (OSError, ValueError, SyntaxError) as error:
            raise error if isinstance(error, DataError) else DataError(f"{name} cannot be decoded ({error}).") from None
    elif hasattr(image, "__array__"):
        array = np.asarray(image)
        array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or not array.size:
            raise DataError(
                f"{name} is an array {list(array.shape)} of {array.dtype}: it must be [height, width, 3] or "
                "[height, width], uint8."
            )
        picture = Image.fromarray(np.ascontiguousarray(array)).convert("RGB")
    else:
        raise DataError(
            f"{name} is of type {type(image).__name__}: it must be the path of a file, a PIL image or an array."
        )
    return picture, (picture.height, picture.width)


def _check_regular(path: Path) -> None:
    """Raises a DataError where a path is not that of a file: opening a pipe, for one, would wait forever."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be opened ({getattr(error, 'strerror', None) or error}).") from None
    if stat.S_ISDIR(mode):
        raise DataError(f"{path} is a folder: give the images in it.")
    if not stat.S_ISREG(mode):
        raise DataError(f"{path} is no regular file: give the file of an image.")
