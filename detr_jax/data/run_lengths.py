"""COCO's compressed run lengths: their numbers, and the masks that they describe.

A mask is stored column by column as the lengths of runs of 0 and 1 in turn, beginning with 0. Each number is the
difference to the one before the last, in groups of five bits that are written as characters. `faster_coco_eval` decodes
a mask pixel by pixel. Here it is several times as fast, because masks are decoded for every training image.
"""

from typing import Any

import numpy as np


def counts_of(text: bytes) -> np.ndarray:
    """The run lengths [k] int64 of COCO's compressed form.

    Raises:
      ValueError: the text is damaged.
    """
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63:
        raise ValueError("a character that is none of the 64 that are used")
    last = codes & 0x20 == 0  # the last character of each number
    if not last[-1]:
        raise ValueError("an unfinished number")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 11:
        raise ValueError("a number of too many characters")
    values = np.add.reduceat((codes & 0x1F) << 5 * place, starts)
    negative = codes[ends] & 0x10 > 0
    values -= negative * (1 << 5 * (ends - starts + 1))
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def bitmap_of(counts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask [H, W] uint8 of run lengths [k], stored column by column.

    Args:
      counts: they sum to H * W.
      size: (H, W) in pixels.
    """
    height, width = size
    return np.repeat(np.arange(len(counts), dtype=np.uint8) & 1, counts).reshape(width, height).T


def decoded(runs: dict[str, Any]) -> np.ndarray:
    """The mask [H, W] bool of COCO's dictionary with ``size`` and ``counts``, which are bytes or a text."""
    counts, (height, width) = runs["counts"], runs["size"]
    return bitmap_of(counts_of(counts.encode() if isinstance(counts, str) else counts), (height, width)).view(bool)
