"""The paper's attention pictures: each detected object's in the decoder, chosen points' in the encoder."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detr_jax.results import ImageAttention, ImageDetections
from detr_jax.visualization.boxes import LabelledBoxes, draw_boxes, resize_to

_TILE = 300  # longer side of an image, in pixels
_GAP = 8
_TITLE = 22
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], float)  # "inferno"


def heat_map(image: np.ndarray, weights: np.ndarray, cells: tuple[float, float], scale: float = 1.0) -> Image.Image:
    """Weights [h, w], the largest brightest, over the greys of an image [H, W, 3] uint8 enlarged by ``scale``.

    The image covers ``cells`` (height, width) of the ``h, w`` cells, from the upper left on.
    """
    picture = resize_to(image, scale).convert("L").convert("RGB")
    levels = Image.fromarray((weights / max(float(weights.max()), 1e-12)).astype(np.float32))
    smooth = levels.resize(picture.size, Image.Resampling.BILINEAR, box=(0, 0, cells[1], cells[0]))
    shares = np.clip(np.asarray(smooth), 0, 1)
    stops = np.linspace(0, 1, len(_HEAT))
    heat = np.stack([np.interp(shares, stops, channel) for channel in _HEAT.T], axis=-1)
    opacity = 0.35 + 0.5 * shares[..., None]
    return Image.fromarray((np.asarray(picture) * (1 - opacity) + heat * opacity).astype(np.uint8))


def attention_sheet(
    attention: ImageAttention, points: Sequence[tuple[float, float]] | None = None, *, columns: int = 4
) -> Image.Image:
    """One picture: an image, its objects each with the decoder's attention, and points with the encoder's.

    Args:
      attention: of the image.
      points: (x, y) in pixels of the image; by default the centres of the four surest objects.

    Raises:
      ValueError: a point lies outside of the image, or the model has no encoder.
    """
    image, found, scale = attention.image, attention.found, _TILE / max(attention.image.shape[:2])
    categories = dict(zip(found.labels.tolist(), found.names, strict=True))
    items = LabelledBoxes(found.boxes, found.labels, found.scores)
    if points is None:
        points = [] if attention.encoder is None else _centres(found)[:4]
    cells = [("detections", draw_boxes(image, items, categories, scale=scale))]
    for i, weights in enumerate(attention.decoder):
        heated = np.asarray(heat_map(image, weights, attention.cells, scale))
        one = LabelledBoxes(found.boxes[i : i + 1] * scale, found.labels[i : i + 1], found.scores[i : i + 1])
        cells.append(("decoder, the object's query", draw_boxes(heated, one, categories)))
    for x, y in points:
        picture = heat_map(image, attention.of_point(x, y), attention.cells, scale)
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


def _centres(found: ImageDetections) -> list[tuple[float, float]]:
    """The centres (x, y) of objects, in pixels, moved into the image."""
    height, width = found.size
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    return [(min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)) for x, y in centres.tolist()]
