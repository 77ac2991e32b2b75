"""Images with panoptic segments, in the colours of their classes."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from detr_jax.visualization.colors import blend_masks, class_color, resize_to
from detr_jax.visualization.fonts import font_for, legible

_LEAST_SIDE = 320  # pixels of the longer side of a picture
_PADDING = 2  # pixels of colour around the letters of a caption


def draw_segments(image: np.ndarray, ids: np.ndarray, segments: Mapping[int, tuple[int, str]]) -> Image.Image:
    """Draws segments and their names on an image. Small images are enlarged.

    Args:
      image: [H, W, 3] uint8.
      ids: [H, W] int, the segment of each pixel; 0 for none.
      segments: label and name of each segment by its id.
    """
    masks = np.array([ids == one for one in segments], bool).reshape(-1, *ids.shape)
    blended = blend_masks(image, masks, [label for label, _ in segments.values()])
    scale = max(1, round(_LEAST_SIDE / max(ids.shape)))
    picture = resize_to(blended, scale)
    pen = ImageDraw.Draw(picture)
    size = float(np.clip(max(picture.size) / 32, 10, 18))
    for mask, (label, name) in zip(masks, segments.values(), strict=True):
        x, y = (scale * coordinate for coordinate in _middle(mask))
        text = legible(name, str(label))
        font = font_for(text, size)
        left, top, right, bottom = pen.textbbox((x, y), text, font=font, anchor="mm")
        pen.rectangle((left - _PADDING, top - _PADDING, right + _PADDING, bottom + _PADDING), fill=class_color(label))
        pen.text((x, y), text, fill="white", font=font, anchor="mm")
    return picture


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """A pixel (x, y) of a mask near its middle."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return 0, 0
    distance = np.abs(rows - np.median(rows)) + np.abs(columns - np.median(columns))
    nearest = int(distance.argmin())
    return int(columns[nearest]), int(rows[nearest])
