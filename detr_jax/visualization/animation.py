"""An animation of a training: the boxes of all object queries on the same images at several steps."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detr_jax.visualization.boxes import LabelledBoxes, class_color, clipped, resize_to

SUFFIXES = (".gif", ".png", ".apng", ".webp")
_TILE = 160  # longer side of an image, in pixels
_GAP = 6
_HEAD = 30
_MILLISECONDS = (900, 160, 3000)  # of the first frame, those between, and the last


def training_animation(
    path: Path,
    images: Sequence[np.ndarray],
    steps: Sequence[int],
    frames: Sequence[Sequence[LabelledBoxes]],
    *,
    columns: int = 4,
) -> None:
    """Writes an animation with one frame per step. The opacity of each query's box is its score.

    Args:
      path: the file to write, with one of `SUFFIXES`.
      images: [H, W, 3] uint8 each.
      steps: optimizer steps of the frames.
      frames: for each step and image the boxes of all queries, in pixels of the image, with scores.
      columns: images per row.

    Raises:
      ValueError: there is no frame, or the file's suffix is not one of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES or not frames:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}, and there must be at least one frame.")
    tiles = [resize_to(image, _TILE / max(image.shape[:2])) for image in images]
    sheets = [
        _frame(images, tiles, found, step, max(steps), columns) for step, found in zip(steps, frames, strict=True)
    ]
    durations = [_MILLISECONDS[1]] * len(sheets)
    durations[0], durations[-1] = _MILLISECONDS[0], _MILLISECONDS[-1]
    if path.suffix.lower() == ".gif":  # with one palette for all frames, unchanged pixels take no space
        palette = sheets[-1].quantize(255, dither=Image.Dither.NONE)
        sheets = [sheet.quantize(palette=palette, dither=Image.Dither.NONE) for sheet in sheets]
    kind = {".gif": "GIF", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
    compact = {"quality": 60, "method": 6} if kind == "WEBP" else {}
    sheets[0].save(path, kind, save_all=True, append_images=sheets[1:], duration=durations, loop=0, **compact)


def _frame(
    images: Sequence[np.ndarray],
    tiles: Sequence[Image.Image],
    found: Sequence[LabelledBoxes],
    step: int,
    last_step: int,
    columns: int,
) -> Image.Image:
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    size = (columns * (_TILE + _GAP) + _GAP, _HEAD + rows * (_TILE + _GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 5), f"step {step:,} of {last_step:,}", fill="black", font=ImageFont.load_default(size=14))
    pen.rectangle((170, 11, size[0] - _GAP, 17), fill="#e4e4e4")
    pen.rectangle((170, 11, 170 + (size[0] - _GAP - 170) * step / max(last_step, 1), 17), fill="#4363d8")
    for i, (image, tile, items) in enumerate(zip(images, tiles, found, strict=True)):
        row, column = divmod(i, columns)
        sheet.paste(_with_queries(image, tile, items), (_GAP + column * (_TILE + _GAP), _HEAD + row * (_TILE + _GAP)))
    return sheet


def _with_queries(image: np.ndarray, tile: Image.Image, items: LabelledBoxes) -> Image.Image:
    assert items.scores is not None
    layered = tile.convert("RGBA")
    scale = tile.width / image.shape[1]
    for i in np.argsort(items.scores):
        layer = Image.new("RGBA", tile.size)
        opacity = round(255 * float(np.clip(np.nan_to_num(items.scores[i]), 0, 1)))
        corners = clipped(items.boxes[i] * scale, tile.size)
        color = (*class_color(int(items.labels[i])), opacity)
        ImageDraw.Draw(layer).rectangle(corners, outline=color, width=3 if opacity > 127 else 2)
        layered.alpha_composite(layer)
    return layered.convert("RGB")
