"""Pictures of images with boxes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PALETTE = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#808000", "#000075",
)  # fmt: skip
_TILE = 320  # longer side of an image in a sheet, in pixels
_MARGIN = 8
_TITLE = 22


class LabelledBoxes(NamedTuple):
    """Boxes to draw. Dimension: ``n`` boxes."""

    boxes: np.ndarray
    """[n, 4] xyxy in pixels of the image."""
    labels: np.ndarray
    """[n] category ids."""
    scores: np.ndarray | None = None
    """[n] in 0..1, or None for ground truth."""


def draw_boxes(
    image: np.ndarray, items: LabelledBoxes, categories: dict[int, str], *, scale: float = 1.0
) -> Image.Image:
    """An image [H, W, 3] uint8, enlarged by ``scale``, with its boxes, names and scores."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image).resize((max(1, round(width * scale)), max(1, round(height * scale))))
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=13)
    scores = [None] * len(items.labels) if items.scores is None else items.scores
    for box, label, score in zip(items.boxes * scale, items.labels.tolist(), scores, strict=True):
        color = _PALETTE[label % len(_PALETTE)]
        left, top = np.clip(box[:2], 0, np.subtract(picture.size, 1)).tolist()
        right, bottom = np.clip(box[2:], (left, top), np.subtract(picture.size, 1)).tolist()
        pen.rectangle((left, top, right, bottom), outline=color, width=2)
        name = categories.get(label, str(label))
        caption = name if score is None else f"{name} {score:.2f}"
        background = pen.textbbox((left + 2, max(top - 16, 0)), caption, font=font)
        pen.rectangle(background, fill=color)
        pen.text((left + 2, max(top - 16, 0)), caption, fill="white", font=font)
    return picture


def comparison_sheet(
    path: Path,
    images: Sequence[np.ndarray],
    truths: Sequence[LabelledBoxes],
    predictions: Sequence[LabelledBoxes],
    categories: dict[int, str],
    *,
    columns: int = 3,
) -> None:
    """Writes one picture of all images, each with its ground truth on the left and its predictions on the right.

    Args:
      path: the file to write; its suffix gives the format.
      images: [H, W, 3] uint8 each.
      truths, predictions: boxes in pixels of the respective image.
      categories: names of the labels.
      columns: pairs in a row.
    """
    cells = [
        [("ground truth", _fitted(image, truth, categories)), ("predictions", _fitted(image, found, categories))]
        for image, truth, found in zip(images, truths, predictions, strict=True)
    ]
    _save_sheet(path, cells, columns)


def sample_sheet(
    path: Path,
    titles: Sequence[str],
    images: Sequence[np.ndarray],
    items: Sequence[LabelledBoxes],
    categories: dict[int, str],
    *,
    columns: int = 6,
) -> None:
    """Writes one picture of all images, each with its boxes and, above it, its title; arguments as above."""
    cells = [
        [(title, _fitted(image, boxes, categories))] for title, image, boxes in zip(titles, images, items, strict=True)
    ]
    _save_sheet(path, cells, columns)


def _fitted(image: np.ndarray, items: LabelledBoxes, categories: dict[int, str]) -> Image.Image:
    """An image [H, W, 3] uint8 with its boxes, as large as a sheet shows it."""
    return draw_boxes(image, items, categories, scale=_TILE / max(image.shape[:2]))


def _save_sheet(path: Path, cells: Sequence[Sequence[tuple[str, Image.Image]]], columns: int) -> None:
    """Writes cells of one or more titled pictures side by side, ``columns`` of them in a row."""
    columns = min(columns, max(len(cells), 1))
    side_by_side = max(map(len, cells), default=1)
    cell_width, cell_height = side_by_side * (_TILE + _MARGIN) + _MARGIN, _TILE + _TITLE + _MARGIN
    rows = -(-max(len(cells), 1) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        for side, (title, picture) in enumerate(cell):
            x = column * cell_width + _MARGIN + side * (_TILE + _MARGIN)
            y = row * cell_height
            pen.text((x, y + 3), title, fill="black", font=font)
            sheet.paste(picture, (x, y + _TITLE))
    sheet.save(path)
