"""Changes of an image's colours by given factors."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance

_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def jitter(image: np.ndarray, factors: Sequence[float], hue: float) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, in this order.

    Brightness blends the image with black, contrast with its mean grey level, saturation with its own grey levels; the
    result is clipped to 0..255 after each. A grey level is Pillow's (ITU-R 601-2 luma). The hue is shifted in Pillow's
    HSV image, whose circle has 256 steps.

    Args:
      image: [H, W, 3] uint8, RGB.
      factors: of brightness, contrast and saturation; 1 changes nothing.
      hue: the shift in turns of the colour circle; less than a step of the 256 changes nothing.

    Returns:
      [H, W, 3] uint8.
    """
    picture = Image.fromarray(image)
    for enhancer, factor in zip(_ENHANCERS, factors, strict=True):
        if factor != 1:
            picture = enhancer(picture).enhance(factor)
    if shift := round(hue * 256) % 256:
        hsv = np.array(picture.convert("HSV"))
        hsv[..., 0] += np.uint8(shift)  # wraps around, as the circle does
        picture = Image.fromarray(hsv, "HSV").convert("RGB")
    return np.asarray(picture)
