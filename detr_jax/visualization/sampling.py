"""Pictures of the points that a Deformable DETR samples (Zhu et al., 2021, figure 6)."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from detr_jax.visualization.attention import HEAT, MOST_OBJECTS, TILE, tiled
from detr_jax.visualization.boxes import LabelledBoxes, class_color, clipped, draw_boxes, resize_to
from detr_jax.visualization.fonts import class_caption

if TYPE_CHECKING:  # results.py imports this file
    from detr_jax.results import ImageSampling


def sampled_points(image: np.ndarray, places: np.ndarray, weights: np.ndarray, scale: float = 1.0) -> Image.Image:
    """Draws points over a grey copy of an image. The larger a weight, the brighter and larger its point.

    Args:
      image: [H, W, 3] uint8.
      places: [K, 2], (x, y) in pixels of the image.
      weights: [K], at least 0.
      scale: the image is enlarged by this factor.
    """
    picture = resize_to(image, scale).convert("L").convert("RGB")
    pen = ImageDraw.Draw(picture)
    shares = weights / max(float(weights.max()), 1e-12)
    stops = np.linspace(0, 1, len(HEAT))
    for k in np.argsort(shares):  # the largest on top
        x, y = (places[k] * scale).tolist()
        radius = 1.0 + 3.0 * float(shares[k])
        color = tuple(round(float(np.interp(shares[k], stops, channel))) for channel in HEAT.T)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline="black")
    return picture


def sampling_sheet(sampling: "ImageSampling", *, max_detections: int = MOST_OBJECTS, columns: int = 4) -> Image.Image:
    """Draws an image, and for each of its objects the points that its query reads.

    Args:
      sampling: the points of one image.
      max_detections: the largest number of objects to show, highest scores first.
      columns: tiles per row.
    """
    image, every, scale = sampling.image, sampling.found, TILE / max(sampling.image.shape[:2])
    found = every.only(max_detections=max_detections)
    number = f"{len(found)} of {len(every)}" if len(found) < len(every) else str(len(found))
    names = dict(zip(found.labels.tolist(), found.names, strict=True))
    items = LabelledBoxes(found.boxes, found.labels, found.scores)
    cells = [(f"detections: {number}", draw_boxes(image, items, names, scale=scale))]
    for i, (box, score, label) in enumerate(zip(found.boxes, found.scores, found.labels.tolist(), strict=True)):
        picture = sampled_points(image, sampling.places[i].reshape(-1, 2), sampling.weights[i].ravel(), scale)
        ImageDraw.Draw(picture).rectangle(clipped(box * scale, picture.size), outline=class_color(label), width=2)
        cells.append((f"{class_caption(label, names)} {score:.2f}", picture))
    return tiled(cells, columns)
