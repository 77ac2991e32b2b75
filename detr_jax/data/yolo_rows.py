"""Parse the rows of YOLO's label files, and find their form from all rows of a data set.

A row is a class and numbers. The numbers are a box ``cx cy w h``, which a confidence and a track number may follow; or
a box and key points; or the corners ``x y`` of a polygon. A single row may fit several forms, so all rows are used.
"""

import collections
import math
import re
from array import array
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

FORMS = ("auto", "box", "polygon", "pose")
"""The forms that can be requested. "auto" finds the form from all rows."""

NUMBER, LABEL, COUNT, BOX, BOUNDS, SIGNS = 0, 1, 2, slice(3, 7), slice(7, 11), 11
"""Columns of `Labels.rows`.

They are the line in the file, the class, the count of the numbers after it, the first four numbers, the bounds x0 y0 x1
y1 of all numbers as corners (without the last of an odd count), and the signs below.
"""
_COLUMNS = 12

_POINTS_2D, _POINTS_3D, _PARALLELOGRAM, _CORNERS, _INTEGER, _ABOVE_1, _FRACTION, _BOX, DUPLICATE = (
    1 << n for n in range(9)
)
"""Signs of a row, as bits:

* ``_POINTS_2D``: the numbers from the fifth on are points within the box.
* ``_POINTS_3D``: the same, with the visibility of each point.
* ``_PARALLELOGRAM``: the corners form a parallelogram.
* ``_CORNERS``: the second corner is near the others.
* ``_INTEGER``: the last number is an integer.
* ``_ABOVE_1``: the last number is above 1.
* ``_FRACTION``: the fifth number is in 0..1.
* ``_BOX``: the first four numbers are a box in the image.
* ``DUPLICATE``: an earlier row is the same.
"""

_NO_BOX = [0.0] * 4
_SURE = 0.95  # fraction of the rows that must show a form
_MIN_ROWS = 3  # rows that a pattern needs so that it is not an accident
_NEAR = 0.1  # distance, relative to the sides of the box, by which points may lie outside
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d)")


class Labels(NamedTuple):
    """The content of a label file. Dimension: ``n`` rows."""

    rows: np.ndarray
    """[n, 12] float64; `NUMBER` and the constants after it are the columns."""
    faults: list[tuple[int, str]]
    """Line and text of each row that is not a class and numbers."""
    oddities: collections.Counter[str]
    """The numbers of unusual rows that were read, by kind."""


class Form(NamedTuple):
    """The form of the rows of a data set."""

    kind: str
    """"box" (the first four numbers), "polygon" (the bounding box of the corners), or "" if the form is unclear."""
    counts: frozenset[int] | None
    """The allowed counts of numbers after the class. None: 4 for a box, or any even count of 6 or more."""
    words: str
    """A description of a row for messages."""
    reason: str
    """The reason for this form, or why it is unclear."""

    def fits(self, count: int) -> bool:
        """Whether a row may have this count of numbers after its class."""
        return count in self.counts if self.counts is not None else count == 4 or (count >= 6 and count % 2 == 0)


def parse_labels(text: str, labels: Mapping[str, int]) -> Labels:
    """Reads the rows of a label file.

    Args:
      text: the content of the file.
      labels: class by name, for rows with class names.
    """
    rows, faults, oddities = array("d"), [], collections.Counter[str]()
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.split():
            continue
        label, *values = _numbers(line, labels, oddities)
        if not label.is_integer() or not math.isfinite(sum(values)):
            faults.append((number, line.strip()))
            continue
        if len(values) == 4:
            if values[2] < 0 or values[3] < 0:
                oddities["boxes with negative width or height were read with positive sides"] += 1
                values[2:] = abs(values[2]), abs(values[3])
            signs, bounds = 0, _NO_BOX
        else:
            signs, bounds = _signs(values), _bounds(values)
        row = line.strip()
        if row in seen:
            signs |= DUPLICATE
        seen.add(row)
        first = values if len(values) == 4 else (values + _NO_BOX)[:4]
        rows.extend((number, label, len(values), *first, *bounds, signs))
    return Labels(np.frombuffer(rows, np.float64).reshape(-1, _COLUMNS), faults, oddities)


def corners_by_line(text: str, labels: Mapping[str, int]) -> dict[int, list[float]]:
    """The numbers after the class of each row of a label file, by line. `parse_labels` has checked the file."""
    ignored = collections.Counter[str]()
    lines = enumerate(text.splitlines(), start=1)
    return {number: _numbers(line, labels, ignored)[1:] for number, line in lines if line.split()}


def _numbers(line: str, labels: Mapping[str, int], oddities: collections.Counter[str]) -> list[float]:
    """The class and the numbers of a row. The class is NaN if it is not a row."""
    try:
        return [*map(float, line.split())]
    except ValueError:
        return _unusual(line, labels, oddities)


def _unusual(line: str, labels: Mapping[str, int], oddities: collections.Counter[str]) -> list[float]:
    """The class and numbers of a row with other separators or a class name. It is [nan] if it is not a row."""
    separated = line.replace(";", " ")
    if "," in separated:
        decimal = "." not in separated and len(separated.split()) >= 5
        separated = _DECIMAL_COMMA.sub(".", separated) if decimal else separated.replace(",", " ")
        oddities["rows with decimal commas were read" if decimal else "rows separated by commas were read"] += 1
    elif ";" in line:
        oddities["rows separated by semicolons were read"] += 1
    parts = separated.split()
    start = len(parts)
    while start and _is_number(parts[start - 1]):
        start -= 1
    if start:
        name = " ".join(parts[:start]).strip("\"'")
        if name not in labels:
            return [math.nan]
        oddities["rows with the name of their class were read"] += 1
        return [float(labels[name]), *map(float, parts[start:])]
    return [*map(float, parts)] or [math.nan]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _bounds(values: list[float]) -> list[float]:
    """The bounds x0 y0 x1 y1 of corners. The last of an odd number of values is ignored."""
    even = len(values) // 2 * 2
    if not even:
        return _NO_BOX
    xs, ys = values[:even:2], values[1:even:2]
    return [min(xs), min(ys), max(xs), max(ys)]


def _signs(values: list[float]) -> int:
    """The signs of a row whose count of numbers is not 4."""
    count = len(values)
    signs = 0
    if count < 5:
        return signs
    cx, cy, w, h = values[:4]
    signs |= _FRACTION * (0 <= values[4] <= 1)
    signs |= _INTEGER * values[-1].is_integer()
    signs |= _ABOVE_1 * (values[-1] > 1)
    if 0 < w <= 1 and 0 < h <= 1 and min(cx - w / 2, cy - h / 2) >= -0.05 and max(cx + w / 2, cy + h / 2) <= 1.05:
        signs |= _BOX
        if _within(values[4::2], values[5::2], cx, cy, w, h):
            signs |= _POINTS_2D
        if (count - 4) % 3 == 0 and set(values[6::3]) <= {0.0, 1.0, 2.0}:
            signs |= _POINTS_3D * _within(values[4::3], values[5::3], cx, cy, w, h)
    if count in (8, 9):
        x, y = values[:8:2], values[1:8:2]
        closes = max(abs(x[0] + x[2] - x[1] - x[3]), abs(y[0] + y[2] - y[1] - y[3])) < 2e-3
        area = abs((x[1] - x[0]) * (y[3] - y[0]) - (x[3] - x[0]) * (y[1] - y[0]))
        signs |= _PARALLELOGRAM * (closes and area > 1e-6)
    if count >= 6:
        x0, y0, x1, y1 = _bounds(values[:2] + values[4:])
        near = max(x1 - x0, y1 - y0)
        signs |= _CORNERS * (x0 - near <= values[2] <= x1 + near and y0 - near <= values[3] <= y1 + near)
    return signs


def _within(xs: list[float], ys: list[float], cx: float, cy: float, w: float, h: float) -> bool:
    """Whether points are in a box. Points at 0, 0 are invisible and do not count."""
    room_x, room_y = w * (0.5 + _NEAR), h * (0.5 + _NEAR)
    return all((abs(x - cx) <= room_x and abs(y - cy) <= room_y) or (x == 0 == y) for x, y in zip(xs, ys, strict=False))


def conclude(rows: np.ndarray, *, key_points: tuple[int, int] | None, task: str, requested: str) -> Form:
    """The form that fits the rows of a data set.

    Args:
      rows: the rows of all files, as in `Labels`.
      key_points: ``kpt_shape`` of the ``data.yaml``: the number of key points, and how many numbers each has (2 or 3).
      task: ``task`` of the ``data.yaml``, such as "detect", "segment", "pose" or "obb"; "" if it is missing.
      requested: one of `FORMS`.
    """
    if requested != "auto":
        kind = "polygon" if requested == "polygon" else "box"
        return _form(kind, None if kind == "polygon" else range(4, 10_000), f'data.sources.yolo.rows is "{requested}"')
    if key_points is not None:
        points, numbers = key_points
        first = 4 + points * numbers
        words = f"a box and {points} key points of {numbers} numbers each"
        return Form(
            "box", frozenset((4, first, first + 1, first + 2)), words, f"data.yaml has kpt_shape: {[*key_points]}"
        )
    counts = collections.Counter(int(count) for count in rows[:, COUNT] if count >= 4)
    if set(counts) <= {4}:
        return _form("box", {4}, f"all {counts[4]} rows have 4 numbers after the class")
    if task in ("segment", "obb"):
        return _form("polygon", None, f"data.yaml has task: {task}")
    return _by_count(rows, counts)


def _by_count(rows: np.ndarray, counts: collections.Counter[int]) -> Form:
    """The form of rows if some have more than the four numbers of a box."""
    boxes = counts[4]
    other = collections.Counter({count: times for count, times in counts.items() if count != 4})
    count, times = max(other.items(), key=lambda item: (item[1], item[0]))
    form = _of_different_counts(rows, other)
    if times >= 0.9 * other.total() or set(other) == {5, 6}:
        alike = _of_one_count(rows[rows[:, COUNT] == count], count)
        form = alike if alike.kind or len(other) == 1 else form
    extra = form.counts is not None and max(form.counts, default=0) <= 6 and form.words not in _OPTIONAL
    if boxes >= 0.5 * counts.total() and extra:  # most rows are plain boxes, so the others are faulty
        return _form("box", {4}, f"{boxes} of {counts.total()} rows have 4 numbers after the class")
    return form


def _of_different_counts(rows: np.ndarray, other: collections.Counter[int]) -> Form:
    """The form of rows with different counts of numbers. Such rows are usually polygons."""
    long = rows[rows[:, COUNT] >= 6]
    even, odd = long[long[:, COUNT] % 2 == 0], long[long[:, COUNT] % 2 == 1]
    if len(even) >= _MIN_ROWS and _fraction(even, _INTEGER) == 1:
        return _unclear("the last number of every row is an integer, as a track number is and a corner rarely is")
    reason = f"rows have {len(other)} different counts of numbers, from {min(other)} to {max(other)}"
    seen = {4, *(count for count in other if count >= 6)}
    if len(odd) and _fraction(odd, _INTEGER) == 1:
        return _form(
            "polygon",
            seen,
            f"{reason}, the last an integer if the count is odd",
            "a polygon, which a track number may follow",
        )
    if len(odd) > len(even):
        return _form(
            "polygon", {count for count in seen if count % 2 or count == 4}, reason, "a polygon and a confidence"
        )
    return _form("polygon", None, reason)


def _of_one_count(rows: np.ndarray, count: int) -> Form:
    """The form of rows with the same count of numbers, 5 or more."""
    summary = f"{len(rows)} rows have {count} numbers after the class"
    boxes, integer = _fraction(rows, _BOX) >= _SURE, _fraction(rows, _INTEGER) == 1
    if count == 5:
        if boxes and integer and (_fraction(rows, _ABOVE_1) or len(rows) >= _MIN_ROWS):
            return _form("box", {4, 5}, f"{summary}, the last an integer", "a box and a track number")
        if boxes and _fraction(rows, _FRACTION) == 1:
            return _form("box", {4, 5}, f"{summary}, the last in 0 to 1", "a box and a confidence")
        return _unclear(f"{summary}, and the last is neither a confidence in 0 to 1 nor an integer track number")
    if count == 6 and boxes and integer and _fraction(rows, _FRACTION) == 1:
        if _fraction(rows, _ABOVE_1) or len(rows) >= _MIN_ROWS:
            reason = f"{summary}, the fifth in 0 to 1, the last an integer"
            return _form("box", {4, 5, 6}, reason, "a box, a confidence and a track number")
        return _unclear(f"{summary}, which may be a triangle or a box with confidence and track number")
    visible = _fraction(rows, _POINTS_3D)
    if (count - 4) % 3 == 0 and visible >= _SURE and len(rows) >= _MIN_ROWS:
        points = (count - 4) // 3
        reason = f"{summary}, which make {points} points within the box, each with a visibility of 0, 1 or 2"
        return _form("box", {4, count}, reason, f"a box and {points} key points of 3 numbers each")
    behind = " and one more number" if count % 2 else ""  # a confidence or a track
    allowed = {4, count, count - 1} if count % 2 else None
    if count in (8, 9) and _fraction(rows, _PARALLELOGRAM) >= _SURE:
        return _form("polygon", allowed, f"{summary}, the corners of rotated boxes{behind}")
    inside, corners = max(visible, _fraction(rows, _POINTS_2D)), _fraction(rows, _CORNERS)
    shares = f"{summary}: {inside:.0%} of them make points within a box, {corners:.0%} neighbouring corners{behind}"
    if inside <= 0.5 or (corners >= _SURE and inside < 0.8):
        return _form("polygon", allowed, shares)
    if inside >= _SURE and corners < 0.8 and len(rows) >= _MIN_ROWS:
        words = f"a box and {(count - 4) // 2} key points of 2 numbers each{behind}"
        return _form("box", {4, *(allowed or {count})}, shares, words)
    return _unclear(shares)


_OPTIONAL = ("a box and a track number",)
"""Forms that plain boxes may be mixed with: CVAT writes track numbers only for objects that have one."""


def _fraction(rows: np.ndarray, sign: int) -> float:
    return float(np.mean(rows[:, SIGNS].astype(np.int64) & sign > 0)) if len(rows) else 0.0


_WORDS = {"box": "a box cx cy w h", "polygon": "a box cx cy w h or three or more corners x y"}


def _form(kind: str, counts: "set[int] | range | None", reason: str, words: str = "") -> Form:
    return Form(kind, None if counts is None else frozenset(counts), words or _WORDS[kind], reason)


def _unclear(reason: str) -> Form:
    return Form("", frozenset(), "", reason)


def boxes_of(rows: np.ndarray, form: Form) -> np.ndarray:
    """The boxes of rows that fit their form, [n, 4] float64, cxcywh in the unit of the rows (normally 0..1)."""
    boxes = rows[:, BOX].copy()
    if form.kind == "polygon":
        corners = rows[:, COUNT] != 4
        x0, y0, x1, y1 = rows[corners, BOUNDS].T
        boxes[corners] = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1)
    return boxes
