"""The paper's attention pictures: each detected object's in the decoder, chosen points' in the encoder."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detr_jax.visualization.boxes import LabelledBoxes, draw_boxes, resize_to

_TILE = 300  # longer side of an image, in pixels
_GAP = 8
_TITLE = 22
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], float)  # "inferno"


def heat_map(image: np.ndarray, weights: np.ndarray, scale: float = 1.0) -> Image.Image:
    """Weights [h, w], the largest brightest, over the greys of an image [H, W, 3] uint8 enlarged by ``scale``."""
    picture = resize_to(image, scale).convert("L").convert("RGB")
    smooth = Image.fromarray((weights / max(float(weights.max()), 1e-12)).astype(np.float32))
    levels = np.clip(np.asarray(smooth.resize(picture.size, Image.Resampling.BILINEAR)), 0, 1)
    stops = np.linspace(0, 1, len(_HEAT))
    heat = np.stack([np.interp(levels, stops, channel) for channel in _HEAT.T], axis=-1)
    opacity = 0.35 + 0.5 * levels[..., None]
    return Image.fromarray((np.asarray(picture) * (1 - opacity) + heat * opacity).astype(np.uint8))


def attention_sheet(
    image: np.ndarray,
    items: LabelledBoxes,
    decoder: np.ndarray,
    points: Sequence[tuple[float, float]],
    encoder: np.ndarray,
    categories: dict[int, str],
    *,
    columns: int = 4,
) -> Image.Image:
    """One picture: the image, its objects each with the decoder's attention, and points with the encoder's.

    Args:
      image: [H, W, 3] uint8.
      items: ``n`` detections in pixels of the image.
      decoder: [n, h, w], the mean over heads of each detection's cross-attention.
      points: (x, y) in pixels of the image.
      encoder: [points, h, w], the mean over heads of the self-attention of each point's cell.
    """
    scale = _TILE / max(image.shape[:2])
    cells = [("detections", draw_boxes(image, items, categories, scale=scale))]
    for i, weights in enumerate(decoder):
        one = LabelledBoxes(*(None if x is None else x[i : i + 1] for x in items))  # type: ignore[arg-type]
        heated = np.asarray(heat_map(image, weights, scale))
        exact = LabelledBoxes(one.boxes * scale, one.labels, one.scores)
        cells.append(("decoder, the object's query", draw_boxes(heated, exact, categories)))
    for (x, y), weights in zip(points, encoder, strict=True):
        picture = heat_map(image, weights, scale)
        pen, at = ImageDraw.Draw(picture), (x * scale, y * scale)
        for radius, color in ((7, "black"), (5, "#00e5ff")):
            pen.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), outline=color, width=3)
        cells.append((f"encoder, point {x:.0f}, {y:.0f}", picture))

    columns = min(columns, len(cells))
    width, height = cells[0][1].size
    rows = -(-len(cells) // columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + _TITLE + _GAP))
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for i, (title, picture) in enumerate(cells):
        left, top = _GAP + i % columns * (width + _GAP), i // columns * (height + _TITLE + _GAP)
        pen.text((left, top + 3), title, fill="black", font=font)
        sheet.paste(picture, (left, top + _TITLE))
    return sheet
