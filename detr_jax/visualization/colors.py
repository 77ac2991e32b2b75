"""The colours of classes, and images blended with masks in them."""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor

_PALETTE = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#808000", "#000075",
)  # fmt: skip
_OPACITY = 0.45  # of a mask

Color = tuple[int, int, int]
"""Red, green and blue in 0..255."""


def class_color(label: int) -> Color:
    """The colour of a class.

    The first ten labels have the colours of a palette. Later labels get hues by the golden ratio, which are far from
    the hues of the labels just before.
    """
    if 0 <= label < len(_PALETTE):
        red, green, blue = ImageColor.getrgb(_PALETTE[label])[:3]
        return red, green, blue
    red, green, blue = (
        round(255 * x) for x in colorsys.hls_to_rgb(label * 0.61803398875 % 1, 0.3 + label % 3 * 0.08, 0.75)
    )
    return red, green, blue


def resize_to(image: np.ndarray, scale: float) -> Image.Image:
    """Resizes an image [H, W, 3] uint8 by ``scale``, to at least one pixel. Small images keep sharp pixels."""
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    sharp = scale >= 2 and max(height, width) <= 128
    return Image.fromarray(image).resize(size, Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS)


def blend_masks(image: np.ndarray, masks: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """Blends masks [n, H, W] bool into an image [H, W, 3] uint8. Each has the colour of its label and a border."""
    blended = image.astype(np.float32)
    for mask, label in zip(masks, labels, strict=True):
        color = np.array(class_color(label), np.float32)
        blended[mask] = (1 - _OPACITY) * blended[mask] + _OPACITY * color
        blended[mask & ~_inner(mask)] = color
    return np.rint(blended).astype(np.uint8)


def _inner(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask whose four neighbours belong to it too."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return inner
