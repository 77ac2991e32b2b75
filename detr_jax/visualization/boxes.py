"""Images with boxes, single and side by side."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from detr_jax.visualization.colors import Color, blend_masks, class_color, resize_to
from detr_jax.visualization.fonts import Font, class_caption, font_for, legible

_TILE = 320  # longer side of an image in a sheet, in pixels
_MARGIN = 8
_TITLE = 22
_TITLE_SIZE = 14  # of its letters, in pixels
_PADDING = 2  # pixels of colour around the letters of a caption


@dataclass(frozen=True, eq=False)
class LabelledBoxes:
    """Boxes to draw. Dimension: ``n`` boxes."""

    boxes: np.ndarray
    """[n, 4] xyxy in pixels of the image."""
    labels: np.ndarray
    """[n] category ids."""
    scores: np.ndarray | None = None
    """[n] in 0..1, or None for ground truth."""
    masks: np.ndarray | None = None
    """[n, H, W] bool, or None to draw boxes only."""


def draw_boxes(
    image: np.ndarray, items: LabelledBoxes, categories: dict[int, str], *, scale: float = 1.0
) -> Image.Image:
    """Draws boxes, masks, names and scores on an image [H, W, 3] uint8 that is enlarged by ``scale``.

    A box has the colour of its class. The highest-scoring boxes are drawn last. Captions are drawn over all boxes and
    inside the picture. They do not overlap if there is enough room. A name that no font can show is drawn as the
    number of its label (`detr_jax.visualization.fonts`). A name that is wider than the picture is shortened.
    """
    if items.masks is not None:
        image = blend_masks(image, items.masks, items.labels.tolist())
    picture = resize_to(image, scale)
    pen = ImageDraw.Draw(picture)
    font_size = float(np.clip(max(picture.size) / 24, 11, 24))
    thickness = 2 if max(picture.size) < 800 else 3
    scores = np.full(len(items.labels), np.nan) if items.scores is None else np.asarray(items.scores, float)
    order = np.argsort(scores, kind="stable")  # NaN, for boxes without a score, comes last
    corners = [clipped(box, picture.size) for box in np.asarray(items.boxes, float).reshape(-1, 4) * scale]
    labels = items.labels.tolist()
    for i in order:
        pen.rectangle(corners[i], outline=class_color(labels[i]), width=thickness)
    taken: list[tuple[int, int, int, int]] = []
    for i in order[::-1]:
        name = class_caption(labels[i], categories)
        font = font_for(name, font_size)
        caption = _cut(name, "" if np.isnan(scores[i]) else f" {scores[i]:.2f}", font, picture.width - 2 * _PADDING)
        taken.append(_draw_caption(pen, picture.size, corners[i], caption, class_color(labels[i]), font, taken))
    return picture


def _cut(name: str, score: str, font: Font, width: float) -> str:
    """A caption of name and score. The name is shortened, to one letter if necessary, to fit ``width`` pixels."""
    caption, kept = name + score, len(name)
    while kept > 1 and font.getlength(caption) > width:
        kept -= 1
        caption = f"{name[:kept].rstrip()}...{score}"
    return caption


def clipped(box: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Clips a box [4] xyxy to a picture of (width, height) ``size``, in pixels. Corners in the wrong order meet."""
    last = np.subtract(size, 1)
    left, top = np.clip(np.nan_to_num(box[:2]), 0, last).tolist()
    right, bottom = np.clip(np.nan_to_num(box[2:]), (left, top), last).tolist()
    return left, top, right, bottom


def _draw_caption(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corners: tuple[float, float, float, float],
    caption: str,
    color: Color,
    font: Font,
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Draws a caption on a background of its colour, at the first free position.

    The positions are above the box, inside it at the top, inside it at the bottom, and below it. Positions are whole
    pixels, because letters between two rows of pixels would lose one row.

    Returns:
      The rectangle of the caption in pixels, xyxy.
    """
    left, top, right, bottom = pen.textbbox((0, 0), caption, font=font)
    left, top = math.floor(left), math.floor(top)
    width, height = math.ceil(right) - left + 2 * _PADDING, math.ceil(bottom) - top + 2 * _PADDING
    x = max(0, min(math.floor(corners[0]), size[0] - width))
    upper, lower = math.floor(corners[1]), math.floor(corners[3])
    places = [
        (x, y, x + width, y + height)
        for y in (upper - height, upper, lower - height, lower)
        if 0 <= y <= size[1] - height
    ] or [(x, 0, x + width, height)]
    place = next((p for p in places if not any(_overlap(p, other) for other in taken)), places[0])
    pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=color)
    pen.text((place[0] + _PADDING - left, place[1] + _PADDING - top), caption, fill="white", font=font)
    return place


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def comparison_sheet(
    path: Path,
    images: Sequence[np.ndarray],
    truths: Sequence[LabelledBoxes],
    predictions: Sequence[LabelledBoxes],
    categories: dict[int, str],
    names: Sequence[str] | None = None,
    *,
    columns: int = 3,
) -> None:
    """Writes a picture of all images, each with its ground truth on the left and its predictions on the right.

    Args:
      path: the file to write; its suffix determines the format.
      images: [H, W, 3] uint8 each.
      truths, predictions: boxes in pixels of the respective image.
      categories: names of the labels.
      names: names of the images, for their titles.
      columns: pairs per row.
    """
    each = zip(images, truths, predictions, names or [""] * len(images), strict=True)
    cells = [_compared(image, truth, found, categories, name) for image, truth, found, name in each]
    _sheet(cells, columns).save(path)


def comparison(
    image: np.ndarray, truth: LabelledBoxes, found: LabelledBoxes, categories: dict[int, str]
) -> Image.Image:
    """One image [H, W, 3] uint8 with its ground truth on the left and its predictions on the right."""
    return _sheet([_compared(image, truth, found, categories)], 1)


def _compared(
    image: np.ndarray, truth: LabelledBoxes, found: LabelledBoxes, categories: dict[int, str], name: str = ""
) -> list[tuple[str, Image.Image]]:
    title = f"{name}: ground truth" if name else "ground truth"
    return [(title, _fitted(image, truth, categories)), ("predictions", _fitted(image, found, categories))]


def sample_sheet(
    path: Path,
    titles: Sequence[str],
    images: Sequence[np.ndarray],
    items: Sequence[LabelledBoxes],
    categories: dict[int, str],
    *,
    columns: int = 6,
) -> None:
    """Writes a picture of all images, each with its boxes and its title above it.

    The arguments are the same as for `comparison_sheet`; ``items`` are the boxes of the images.
    """
    cells = [
        [(title, _fitted(image, boxes, categories))] for title, image, boxes in zip(titles, images, items, strict=True)
    ]
    _sheet(cells, columns).save(path)


def draw_title(pen: ImageDraw.ImageDraw, at: tuple[int, int], title: str, width: int) -> None:
    """Draws the title of a picture in black. The middle of a title wider than ``width`` pixels is omitted."""
    whole = shown = legible(title, "?")
    font = font_for(whole, _TITLE_SIZE)
    kept = len(whole)
    while kept > 3 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{whole[: kept // 3]}...{whole[len(whole) - kept + kept // 3 :]}"
    pen.text(at, shown, fill="black", font=font)


def _fitted(image: np.ndarray, items: LabelledBoxes, categories: dict[int, str]) -> Image.Image:
    """An image [H, W, 3] uint8 with its boxes, in the size of a tile."""
    return draw_boxes(image, items, categories, scale=_TILE / max(image.shape[:2]))


def _sheet(cells: Sequence[Sequence[tuple[str, Image.Image]]], columns: int) -> Image.Image:
    """Arranges cells in rows of ``columns`` cells. A cell is one or more titled pictures side by side."""
    columns = min(columns, max(len(cells), 1))
    side_by_side = max(map(len, cells), default=1)
    cell_width, cell_height = side_by_side * (_TILE + _MARGIN) + _MARGIN, _TILE + _TITLE + _MARGIN
    rows = -(-max(len(cells), 1) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    for i, cell in enumerate(cells):
        row, column = divmod(i, columns)
        for side, (title, picture) in enumerate(cell):
            x = column * cell_width + _MARGIN + side * (_TILE + _MARGIN)
            y = row * cell_height
            draw_title(pen, (x, y + 3), title, _TILE)
            sheet.paste(picture, (x, y + _TITLE))
    return sheet
