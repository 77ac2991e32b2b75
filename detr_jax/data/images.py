"""Decoding of image files."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from detr_jax.data.source import DataError

_EXIF_ORIENTATION = 0x0112


def read_image(file: Path | bytes, name: str | None = None, *, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes an image file to RGB, [H, W, 3] uint8.

    A rotation noted in EXIF is not applied, as COCO's boxes expect, unless the (height, width) that the annotations
    give is that of the rotated image alone.

    Args:
      file: a path, or the content of a file.
      name: how messages call it; the path where not given.
      size: the annotated (height, width) in pixels.

    Raises:
      DataError: the file is missing or cannot be decoded.
    """
    name = name or (f"The image file {file}" if isinstance(file, Path) else "An image")
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as picture:
            if picture.mode.startswith(("I", "F")):
                raise DataError(f"{name} has more than 8 bits a channel: convert it to 8 bits.")
            if size is not None and size != _stored_size(picture) and size == displayed_size(picture):
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
            return np.asarray(picture.convert("RGB"))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name} does not exist, although the annotations list it.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be decoded ({error}): replace it or take it out.") from None


def displayed_size(picture: Image.Image) -> tuple[int, int]:
    """(height, width) in pixels of an opened image, of which nothing but the header is read, with its EXIF rotation."""
    height, width = _stored_size(picture)
    return (width, height) if picture.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8) else (height, width)


def _stored_size(picture: Image.Image) -> tuple[int, int]:
    return picture.height, picture.width
