"""Decode image files to RGB, and read their sizes, orientations and levels."""

import contextlib
import io
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from PIL import Image, UnidentifiedImageError

from detr_jax.config import DataConfig
from detr_jax.data.levels import has_levels, stated_level, to_rgb
from detr_jax.data.source import DataError, SizeMismatch
from detr_jax.files import LARGEST_IMAGE, UnusableFileError, check_regular, open_regular

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray
"""An image: the path of a file, a PIL image, or a uint8 array [H, W, 3] (RGB), [H, W] or [H, W, 1] (grey)."""

ExifRule = Literal["auto", "apply", "ignore"]
"""How to handle an EXIF orientation. See `decode`."""

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
UNREADABLE = (
    *(UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError, EOFError, IndexError, KeyError),
    *(OverflowError, ZeroDivisionError, RuntimeError, Image.DecompressionBombError),
)
"""The exceptions that Pillow raises for damaged files."""
_REFUSED_FORMATS = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"))
"""Formats that Pillow hands to other programs, or cannot decode by itself."""


def ignore_pillow_warnings() -> None:
    """Turns Pillow's warnings off, because a `DataError` reports what is wrong with an image.

    The filters are installed once for the process, when this module is imported. `warnings.catch_warnings` around each
    call would not work: it changes the filters of the whole process, and images are decoded by many threads.
    """
    for category in (UserWarning, Image.DecompressionBombWarning):
        warnings.filterwarnings("ignore", category=category, module=r"PIL\.")


ignore_pillow_warnings()


@contextlib.contextmanager
def open_picture(file: Path | bytes) -> Iterator[Image.Image]:
    """Opens an image file of at most `LARGEST_IMAGE` bytes with Pillow, which reads its header.

    Formats whose decoders start other programs, such as EPS with Ghostscript, are not recognised.

    Raises:
      OSError: it is not a regular file, or not an image.
      Exception: other exceptions of Pillow for damaged files (`UNREADABLE`).
    """
    with io.BytesIO(file) if isinstance(file, bytes) else open_regular(file) as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if size > LARGEST_IMAGE:
            raise UnusableFileError(f"it has {size:,} bytes, and the limit is {LARGEST_IMAGE:,}")
        Image.preinit()  # the usual formats are tried first
        Image.init()
        with Image.open(stream, formats=[kind for kind in Image.ID if kind not in _REFUSED_FORMATS]) as picture:
            yield picture


def check_pixels(picture: Image.Image, name: str) -> None:
    """Checks the pixels of an opened picture before they are decoded.

    Raises:
      DataError: it has more than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit and picture.height * picture.width > limit:
        raise DataError(
            f"{name} has {picture.height} x {picture.width} pixels, which is more than the limit of {limit} pixels: "
            "make it smaller, or cut it into parts."
        )


def decode(
    file: Path | bytes,
    name: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    size_source: str = "the annotation",
    exif: ExifRule = "auto",
    max_level: float = 0,
    min_size: tuple[int, int] | None = None,
) -> Image.Image:
    """Decodes an image file to RGB with 8 bits per channel.

    Grey, palette, CMYK and other colours are converted. Transparency is dropped, so that a pixel keeps its stored
    colour. The original DETR and OpenCV do the same. `detr_jax.data.levels.to_rgb` scales more than 8 bits to
    8. Only the first frame of an animation is decoded.

    Args:
      file: a path, or the content of a file.
      name: the name of the image in messages, by default its path.
      size: the annotated (height, width) in pixels.
      size_source: the origin of ``size``, as messages name it.
      exif: how to handle an EXIF orientation. "auto": apply it, as viewers do, unless only the stored pixels have the
        annotated ``size``. This is the case in COCO, whose boxes belong to the stored pixels. "apply": always apply it.
        "ignore": never apply it.
      max_level: the highest level that can occur in grey images of more than 8 bits. 0: the file gives it.
      min_size: (height, width) in pixels. If it is given, a JPEG that needs no rotation may be decoded to a half, a
        quarter or an eighth of its sides, rounded up, but not below this size. See `covered`.

    Raises:
      SizeMismatch: the image has another size than annotated.
      DataError: the file is missing, cannot be decoded, or has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    name = name or (f"The image file {file}" if isinstance(file, Path) else "An image")
    try:
        with open_picture(file) as picture:
            turned = is_turned(picture, size, exif)
            # The header is enough for these checks, so that a wrong image costs neither time nor memory.
            _check_header(picture, name, size, size_source, turned, max_level)
            if min_size is not None and not turned:
                picture.draft("RGB", min_size[::-1])  # has no effect on formats other than JPEG
            picture.load()
            rgb = to_rgb(picture, name, max_level)
            return _upright(rgb, _orientation(picture)) if turned else rgb
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name} does not exist, although the annotations list it.") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{name} cannot be decoded (the image format is not recognised): replace or remove it."
        ) from None
    except MemoryError:
        raise DataError(f"{name} does not fit into memory when it is decoded: make it smaller.") from None
    except UNREADABLE as error:
        raise DataError(f"{name} cannot be decoded ({error}): replace or remove it.") from None


def _check_header(
    picture: Image.Image,
    name: str,
    size: tuple[int, int] | None,
    size_source: str,
    turned: bool,
    max_level: float,
) -> None:
    """Checks an opened picture before its pixels are decoded. `decode` describes the arguments.

    Raises:
      SizeMismatch: the image has another size than annotated.
      DataError: it has too many pixels, or colours of a depth that is not supported.
    """
    check_pixels(picture, name)
    stored = (picture.height, picture.width)
    if size is not None and size != (_displayed_size(picture) if turned else stored):
        raise SizeMismatch(
            f"{name} has {stored[0]} x {stored[1]} pixels (height x width), but {size_source} says "
            f"{size[0]} x {size[1]}: correct the one that is wrong."
        )
    if max_level and picture.mode == "RGB" and _is_wide(picture):
        raise DataError(
            f"{name} has 16 bits in each of three colours, and data.max_level={max_level:g} is for grey images "
            "only: convert it to 8 bits per channel."
        )


def read_size(file: Path | bytes, name: str | None = None, *, rotate: bool = False) -> tuple[int, int]:
    """The (height, width) in pixels of an image file. Only the header is read.

    Args:
      file: a path, or the content of a file.
      name: the name of the image in messages, by default its path.
      rotate: whether to apply the EXIF orientation.

    Raises:
      DataError: the file is missing, its header cannot be read, or it has more pixels than `decode` accepts.
    """
    try:
        with open_picture(file) as picture:
            check_pixels(picture, name or f"The image file {file!s}")
            return _displayed_size(picture) if rotate else (picture.height, picture.width)
    except DataError:
        raise
    except UnidentifiedImageError:
        empty = not (len(file) if isinstance(file, bytes) else check_regular(file))
        reason = "it is empty" if empty else "the image format is not recognised"
        raise DataError(f"{name or f'The image file {file!s}'} cannot be opened ({reason}).") from None
    except UNREADABLE as error:
        raise DataError(f"{name or f'The image file {file!s}'} cannot be opened ({error}).") from None


def exif_rule(data: DataConfig) -> ExifRule:
    """The value of ``data.exif`` with its type."""
    return cast(ExifRule, data.exif)


def _orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 (as stored) to 8. It is 1 if pixels would have to be decoded to find it."""
    if picture.format == "PNG" and not picture.info.keys() & {"exif", "Raw profile type exif"}:
        return 1  # Pillow would decode the pixels to look for it
    noted = picture.getexif().get(_EXIF_ORIENTATION, 1)
    return noted if noted in range(1, 9) else 1


def is_turned(picture: Image.Image, size: tuple[int, int] | None, exif: ExifRule) -> bool:
    """Whether `decode` applies the EXIF orientation, if ``size`` is the annotated (height, width) in pixels."""
    if exif == "ignore" or _orientation(picture) == 1:
        return False
    stored = (picture.height, picture.width)
    return exif == "apply" or size is None or size != stored or _displayed_size(picture) == stored


def orientation_matters(file: Path | bytes, size: tuple[int, int]) -> str | None:
    """Which form of an image with an EXIF orientation has the annotated (height, width) ``size``, in pixels.

    Returns:
      "stored" or "displayed" if only this form has the size. "open" if both forms have it. None if there is no EXIF
      orientation or the file cannot be opened.
    """
    try:
        with open_picture(file) as picture:
            if _orientation(picture) == 1:
                return None
            stored, displayed = (picture.height, picture.width), _displayed_size(picture)
    except UNREADABLE:
        return None
    if stored == displayed:
        return "open"
    return "stored" if size == stored else "displayed"


def level_range(file: Path | bytes) -> tuple[float, float] | None:
    """The highest level in a grey image of more than 8 bits, and the highest level that can occur in its file.

    The second is 0 if the file does not say it. The result is None for other images, and for files that cannot be
    decoded.
    """
    try:
        with open_picture(file) as picture:
            if not has_levels(picture):
                return None
            check_pixels(picture, "The image")  # a DataError is a ValueError, which is caught here
            return float(np.asarray(picture).max()), stated_level(picture)
    except (*UNREADABLE, MemoryError):
        return None


def is_dark(file: Path | bytes, max_level: float) -> bool:
    """Whether a grey image of more than 8 bits has only levels below an eighth of the highest possible level.

    The highest possible level is ``max_level``. If it is 0, the file gives it.
    """
    levels = level_range(file)
    return levels is not None and 0 < levels[0] < (max_level or levels[1]) / 8


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture after an EXIF orientation, 2 to 8, is applied."""
    return picture.transpose(_TURNS[orientation])


def _is_wide(picture: Image.Image) -> bool:
    """Whether an opened colour picture has 16 bits per channel, of which Pillow keeps 8."""
    return any(";16" in str(tile.args) for tile in getattr(picture, "tile", []))


def _displayed_size(picture: Image.Image) -> tuple[int, int]:
    height, width = picture.height, picture.width
    return (width, height) if _orientation(picture) >= 5 else (height, width)


def covered(picture: Image.Image, size: tuple[int, int]) -> tuple[float, float]:
    """The (height, width) of the part of a picture that the image covers, in pixels of the picture.

    It is smaller than the picture if an image of (height, width) ``size`` was decoded to a smaller scale that does not
    divide ``size``. The last row and column are then partly beyond the image's border.
    """
    scale = 2 ** round(math.log2(max(size) / max(picture.size)))
    return size[0] / scale, size[1] / scale


def has_more_frames(file: Path | bytes) -> bool:
    """Whether an image file is an animation or has several pages. `decode` reads only the first one.

    The further pictures in a camera's JPEG (MPO) do not count. A file that cannot be opened has no more frames.
    """
    try:
        with open_picture(file) as picture:
            return picture.format != "MPO" and getattr(picture, "is_animated", False)
    except UNREADABLE:
        return False


def open_image(
    image: ImageLike | Any, name: str, *, exif: ExifRule = "auto", max_level: float = 0
) -> tuple[Path | Image.Image, tuple[int, int]]:
    """The path of a file or a picture in RGB, and its (height, width) in pixels. Files are not decoded.

    Args:
      image: the image. Of a file, only the header is read.
      name: the name in messages of an image that is not a file.
      exif: see `decode`. The size of a file is the size that `decode` gives it with the same rule.
      max_level: see `decode`.

    Raises:
      DataError: ``image`` is not an image, or a file that cannot be opened.
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
    """Raises a `DataError` if a path is not a regular file."""
    try:
        check_regular(path)
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} does not exist.") from None
    except OSError as error:
        hint = f"{error}: give the file of an image" if isinstance(error, UnusableFileError) else error.strerror
        raise DataError(f"{path} cannot be opened ({hint}).") from None
