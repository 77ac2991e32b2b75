"""Check the ``segmentation`` of annotations, so that every mask can be computed later."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from detr_jax.data.annotation_rows import Rows, shown
from detr_jax.data.run_lengths import counts_of
from detr_jax.data.source import Faults
from detr_jax.json_files import parse_json

_CORNERS = 3  # the least of a polygon
_FAR = 10**5  # pixels outside of the image at which a corner is certainly wrong; a mask of it would take gigabytes
_SAME_PLACE = 0.5  # the least IoU of a box and the bounds of its polygons
_MIN_ELSEWHERE = 3  # masks that must lie elsewhere than their boxes so that it is not an accident


class _RunLengths(msgspec.Struct):
    size: tuple[int, int]
    counts: str | list[int]


def usable_masks(rows: Rows, used: np.ndarray, sizes: np.ndarray, faults: Faults) -> np.ndarray:
    """Which annotations have a mask that can be computed, [k] bool.

    Args:
      rows: the annotations. Without masks, all are usable.
      used: [k] int, the rows to check.
      sizes: [k, 2] int, (height, width) of each one's image in pixels.
      faults: receives the faults of the others. A mask that cannot be read is an error. An annotation whose polygons
        have fewer than three corners, or whose image has more than ``PIL.Image.MAX_IMAGE_PIXELS``, is counted.
    """
    usable = np.ones(len(used), bool)
    if rows.segmentations is None:
        return usable
    elsewhere: list[str] = []
    compared = 0
    for place, (row, size) in enumerate(zip(used.tolist(), sizes.tolist(), strict=True)):
        text = rows.segmentations[row]
        where = f"{rows.name(row)} of image {rows.owners[row]}"
        if rows.crowds[row] and text in (b"null", b"[]"):
            usable[place] = False
            faults.add("crowds without a segmentation were dropped", where)
            continue
        if Image.MAX_IMAGE_PIXELS and size[0] * size[1] > Image.MAX_IMAGE_PIXELS:
            usable[place] = False
            faults.add("masks of images that have more pixels than can be decoded were dropped", where)
            continue
        try:
            found: Any = msgspec.json.decode(text, type=list[list[float]] | _RunLengths)
        except (msgspec.DecodeError, RecursionError):
            usable[place] = False
            faults.error(*_fault_of_form(text, where))
            continue
        fault = (
            _fault_of_polygons(found, size, where) if isinstance(found, list) else _fault_of_runs(found, size, where)
        )
        if fault is not None:
            usable[place] = False
            faults.error(*fault)
        elif isinstance(found, list):
            usable[place] = _count_degenerate(found, size, where, faults)
            if usable[place]:
                compared += 1
                bounds, box = _bounds(found), rows.boxes[row].tolist()
                if _iou(bounds, box) < _SAME_PLACE:
                    shown_bounds, shown_box = ([round(value, 1) for value in one] for one in (bounds, box))
                    elsewhere.append(f"{where} has polygons within {shown_bounds} and bbox {shown_box}")
    if len(elsewhere) >= _MIN_ELSEWHERE and len(elsewhere) > compared / 2:
        faults.error(
            "masks of another unit or size than the boxes",
            f"{elsewhere[0]} (both xywh), and {len(elsewhere)} of {compared} masks lie elsewhere than their boxes: "
            "both must be in pixels of the same image",
        )
    elif elsewhere:
        faults.add_all("masks that lie elsewhere than their boxes", len(elsewhere), elsewhere)
    return usable


def _bounds(polygons: list[list[float]]) -> list[float]:
    """The bounding box xywh of polygons."""
    x0, y0 = (min(min(polygon[axis::2]) for polygon in polygons if polygon) for axis in (0, 1))
    x1, y1 = (max(max(polygon[axis::2]) for polygon in polygons if polygon) for axis in (0, 1))
    return [x0, y0, x1 - x0, y1 - y0]


def _iou(one: list[float], other: list[float]) -> float:
    """IoU of two boxes xywh, whose sides are at least a pixel."""
    sides = []
    for axis in (0, 1):
        ends = [(box[axis], box[axis] + max(box[axis + 2], 1.0)) for box in (one, other)]
        sides.append(max(min(ends[0][1], ends[1][1]) - max(ends[0][0], ends[1][0]), 0.0))
    shared = sides[0] * sides[1]
    areas = [max(box[2], 1.0) * max(box[3], 1.0) for box in (one, other)]
    return shared / (areas[0] + areas[1] - shared)


def _count_degenerate(polygons: list[list[float]], size: Sequence[int], where: str, faults: Faults) -> bool:
    """Counts polygons without an area or outside of the image. Returns whether one is left."""
    small = sum(len(polygon) < 2 * _CORNERS for polygon in polygons)
    if small == len(polygons):
        faults.add("annotations whose polygons have fewer than three corners were dropped", where)
        return False
    if small:
        faults.add("polygons with fewer than three corners were ignored", where)
    height, width = size
    if all(
        max(polygon[::2]) <= 0 or min(polygon[::2]) >= width or max(polygon[1::2]) <= 0 or min(polygon[1::2]) >= height
        for polygon in polygons
        if len(polygon) >= 2 * _CORNERS
    ):
        faults.add("annotations whose polygons lie outside of the image have an empty mask", where)
    return True


def _fault_of_polygons(polygons: list[list[float]], size: Sequence[int], where: str) -> tuple[str, str] | None:
    if not polygons:
        return (
            "annotations without a segmentation",
            f"{where} has an empty segmentation, and data.masks=True needs polygons or run lengths for each object",
        )
    odd = next((polygon for polygon in polygons if len(polygon) % 2), None)
    if odd is not None:
        return (
            "polygons with an odd count of numbers",
            f"{where} has a polygon of {len(odd)} numbers, which must be pairs x, y",
        )
    if not all(map(math.isfinite, itertools.chain.from_iterable(polygons))):
        return _not_finite(where)
    far = max(size) + _FAR
    if any(abs(number) > far for polygon in polygons for number in polygon):
        return (
            "polygons far outside of their image",
            f"{where} has a polygon with a corner more than {_FAR} pixels outside of the image",
        )
    return None


def _not_finite(where: str) -> tuple[str, str]:
    return "polygons with numbers that are not finite", f"{where} has a polygon with a number that is not finite"


def _fault_of_runs(runs: _RunLengths, size: Sequence[int], where: str) -> tuple[str, str] | None:
    if list(runs.size) != list(size):
        return (
            "run lengths of another size than the image",
            f"{where} has run lengths of size {list(runs.size)}, and its image has {list(size)} (height, width): both "
            "must be equal",
        )
    try:
        lengths = runs.counts if isinstance(runs.counts, list) else counts_of(runs.counts.encode()).tolist()
    except ValueError:
        return "run lengths that are damaged", f"{where} has counts that are not COCO's compressed run lengths"
    if min(lengths, default=0) < 0:
        return "run lengths that are damaged", f"{where} has run lengths below 0: {shown(lengths)}"
    if sum(lengths) != size[0] * size[1]:
        return (
            "run lengths that do not cover the image",
            f"{where} has run lengths with the sum {sum(lengths)}, which must be {size[0] * size[1]}, the pixels of "
            "its image",
        )
    return None


def _fault_of_form(text: bytes, where: str) -> tuple[str, str]:
    """The fault of a segmentation that has neither of COCO's forms."""
    if text == b"null":
        return (
            "annotations without a segmentation",
            f"{where} has no segmentation, and data.masks=True needs polygons or run lengths for each object",
        )
    value = parse_json(text, most_nested=None)  # which reads NaN and Infinity too
    if isinstance(value, list) and all(isinstance(polygon, list) for polygon in value):
        numbers = list(itertools.chain.from_iterable(value))
        if all(isinstance(number, int | float) for number in numbers) and not all(map(math.isfinite, numbers)):
            return _not_finite(where)
    return (
        "segmentations of the wrong type",
        f"{where} has segmentation={shown(value)}, which must be a list of polygons [x, y, x, y, ...] or run lengths "
        "with size and counts",
    )
