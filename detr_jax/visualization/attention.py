"""Pictures of attention as in the paper: decoder attention of detected objects, encoder attention of points."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from detr_jax.boxes import xyxy_to_cxcywh
from detr_jax.visualization.boxes import LabelledBoxes, class_color, clipped, draw_boxes, draw_title, resize_to
from detr_jax.visualization.fonts import class_caption

if TYPE_CHECKING:  # results.py imports this file
    from detr_jax.results import ImageAttention, ImageDetections

MOST_OBJECTS = 8
"""The default for the largest number of objects in a picture."""

TILE = 300  # longer side of an image, in pixels
_GAP = 8
_TITLE = 22
_LEAST_WIDTH = 160  # of a tile, in pixels, so that its title fits
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], float)  # "inferno"


def heat_map(image: np.ndarray, weights: np.ndarray, cells: tuple[float, float], scale: float = 1.0) -> Image.Image:
    """Draws attention weights as a heat map over a grey copy of an image.

    The largest weight has the brightest colour.

    Args:
      image: [H, W, 3] uint8.
      weights: [h, w], one weight per cell of the feature map.
      cells: (height, width) of the part of the weights that shows the image. It starts in the upper left corner. The
        rest is padding.
      scale: the image is enlarged by this factor.
    """
    picture = resize_to(image, scale).convert("L").convert("RGB")
    levels = Image.fromarray((weights / max(float(weights.max()), 1e-12)).astype(np.float32))
    smooth = levels.resize(picture.size, Image.Resampling.BILINEAR, box=(0, 0, cells[1], cells[0]))
    shares = np.clip(np.asarray(smooth), 0, 1)
    stops = np.linspace(0, 1, len(HEAT))
    heat = np.stack([np.interp(shares, stops, channel) for channel in HEAT.T], axis=-1)
    opacity = 0.35 + 0.5 * shares[..., None]
    return Image.fromarray((np.asarray(picture) * (1 - opacity) + heat * opacity).astype(np.uint8))


def attention_sheet(
    attention: "ImageAttention",
    points: Sequence[tuple[float, float]] | None = None,
    *,
    max_detections: int = MOST_OBJECTS,
    columns: int = 4,
) -> Image.Image:
    """Draws an image, the decoder attention of each of its objects, and the encoder attention of points.

    Args:
      attention: the attention of one image.
      points: (x, y) in pixels of the image; by default the centres of the four highest-scoring objects.
      max_detections: the largest number of objects to show, highest scores first.
      columns: tiles per row.

    Raises:
      ValueError: a point lies outside of the image, or the model has no encoder.
    """
    image, every, scale = attention.image, attention.found, TILE / max(attention.image.shape[:2])
    found = every.only(max_detections=max_detections)
    if points is None:
        points = [] if attention.encoder is None else _centres(found)[:4]
    number = f"{len(found)} of {len(every)}" if len(found) < len(every) else str(len(found))
    names = dict(zip(found.labels.tolist(), found.names, strict=True))
    items = LabelledBoxes(found.boxes, found.labels, found.scores)
    cells = [(f"detections: {number}", draw_boxes(image, items, names, scale=scale))]
    for box, score, label, weights in zip(
        found.boxes, found.scores, found.labels.tolist(), attention.decoder, strict=False
    ):
        picture = heat_map(image, weights, attention.cells, scale)
        ImageDraw.Draw(picture).rectangle(clipped(box * scale, picture.size), outline=class_color(label), width=2)
        cells.append((f"decoder: {class_caption(label, names)} {score:.2f}", picture))
    for x, y in points:
        picture = heat_map(image, attention.of_point(x, y), attention.cells, scale)
        pen, at = ImageDraw.Draw(picture), (x * scale, y * scale)
        for radius, color in ((7, "black"), (5, "#00e5ff")):
            pen.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), outline=color, width=3)
        cells.append((f"encoder: point {x:.0f}, {y:.0f}", picture))

    return tiled(cells, columns)


def tiled(cells: Sequence[tuple[str, Image.Image]], columns: int) -> Image.Image:
    """A sheet of pictures of one size with a title above each."""
    columns = min(columns, len(cells))
    width, height = cells[0][1].size
    rows = -(-len(cells) // columns)
    cell_width = max(width, _LEAST_WIDTH)
    size = (columns * (cell_width + _GAP) + _GAP, rows * (height + _TITLE + _GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for i, (title, picture) in enumerate(cells):
        left, top = _GAP + i % columns * (cell_width + _GAP), i // columns * (height + _TITLE + _GAP)
        draw_title(pen, (left, top + 3), title, cell_width)
        sheet.paste(picture, (left, top + _TITLE))
    return sheet


def _centres(found: "ImageDetections") -> list[tuple[float, float]]:
    """The centres (x, y) of objects in pixels, clipped to the image."""
    height, width = found.size
    centres = xyxy_to_cxcywh(found.boxes)[:, :2]
    return [(min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)) for x, y in centres.tolist()]
