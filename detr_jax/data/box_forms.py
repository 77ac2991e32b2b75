"""Detect boxes in another form than the expected one in pixels, from all boxes of a data set."""

from typing import NamedTuple

import numpy as np

_MIN_MISFITS = 2  # boxes that must not fit before the form is doubted
_MIN_SHARE = 0.02  # the same as a fraction of all boxes
_FEWER = 10  # another form is suggested if it has this many times fewer misfits
_CERTAIN_MISFITS, _CERTAIN_SHARE, _CERTAIN_FEWER = 20, 0.1, 100  # the limits above which the other form is certain
_SLACK = 1.0  # pixels by which a correct box may reach beyond its image
_NORMALIZED = 1.5  # the largest coordinate of normalised boxes, some of which reach beyond their image
_NUMBERS = {"corner and size": "[x, y, width, height]", "two corners": "[x0, y0, x1, y1]"}
_ADVICE = {
    ("corner and size", "two corners"): "[x0, y0, x1, y1], so subtract the first corner from the second",
    ("corner and size", "centre and size"): "[cx, cy, width, height], so subtract half of the size from the centre",
    ("two corners", "corner and size"): "[x, y, width, height], so add the corner to the size",
    ("two corners", "centre and size"): "[cx, cy, width, height], so subtract and add half of the size",
}


def normalized_boxes(boxes: np.ndarray, sizes: np.ndarray, written: str = "corner and size") -> str | None:
    """A sentence, without full stop, if all boxes lie in 0..1, as if they were normalised. Otherwise None.

    Args:
      boxes: [n, 4], as they are written.
      sizes: [n, 2], (height, width) of each box's image in pixels.
      written: the form that they should have, "corner and size" or "two corners".
    """
    if not len(boxes) or np.abs(boxes).max() > _NORMALIZED or boxes[:, 2:].max() <= 0 or sizes.min() < 8 * _NORMALIZED:
        return None
    return (
        f"all {len(boxes)} boxes have numbers of at most {np.abs(boxes).max():.3g}, as if they were normalised "
        f"to 0..1: {'bbox' if written == 'corner and size' else 'a box'} must be {_NUMBERS[written]} in pixels, so "
        "multiply them by the width and height of their image"
    )


class Doubt(NamedTuple):
    """A sentence about the form that the boxes of a data set seem to have."""

    sentence: str
    certain: bool
    """Whether the evidence is strong enough to refuse training."""


def doubt_about_boxes(boxes: np.ndarray, sizes: np.ndarray, written: str = "corner and size") -> Doubt | None:
    """A `Doubt` if the boxes of a data set fit another form better than the form ``written``, in pixels.

    The forms are corner and size, two corners, and centre and size. A box fits a form if it has an area
    and lies within its image when it is read in this form.

    Args:
      boxes: [n, 4], as they are written.
      sizes: [n, 2], (height, width) of each box's image in pixels.
      written: the form that they should have, "corner and size" or "two corners".
    """
    number = len(boxes)
    misfits = {form: int((~_fits(*corners, sizes)).sum()) for form, corners in _forms(boxes).items()}
    unfit = misfits.pop(written)
    best = min(misfits, key=lambda form: misfits[form])
    if unfit < max(_MIN_MISFITS, _MIN_SHARE * number) or misfits[best] * _FEWER > unfit:
        return None
    sentence = (
        f"{unfit} of {number} boxes do not fit into their image as {_NUMBERS[written]}, but "
        f"{number - misfits[best]} fit as {best}: they seem to be {_ADVICE[written, best]}."
    )
    certain = unfit >= max(_CERTAIN_MISFITS, _CERTAIN_SHARE * number) and misfits[best] * _CERTAIN_FEWER <= unfit
    return Doubt(sentence, certain)


def _forms(boxes: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    first, second = boxes[:, :2], boxes[:, 2:]
    return {
        "corner and size": (first, first + second),
        "two corners": (first, second),
        "centre and size": (first - second / 2, first + second / 2),
    }


def _fits(low: np.ndarray, high: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[n] bool for corners [n, 2] of (x, y)."""
    within = (low >= -_SLACK).all(axis=1) & (high <= sizes[:, ::-1] + _SLACK).all(axis=1)
    return np.asarray(within & (high > low).all(axis=1))
