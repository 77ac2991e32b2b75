"""`Rows`: annotations of any format as columns in which every value has the right type.

Readers translate into COCO's instances form, a dictionary of three lists (Lin et al., 2014): ``images`` with id,
file_name, height and width, ``annotations`` with id, image_id, category_id, bbox (xywh in pixels), area and iscrowd,
``categories`` with id and name. An annotation may have ``where``, its file and row, for messages. This
module counts items of the wrong type as errors. `detr_jax.data.annotation_checks` then checks the values.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from detr_jax.data.source import Faults
from detr_jax.wording import with_article

LARGEST = 2**31
"""The exclusive limit of sizes and coordinates in pixels."""
LONGEST_NAME = 1000
"""The most characters of the name of a class, which every row of a table of classes has room for."""
UNUSABLE_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters and lone surrogates

_LARGEST_ID = 2**63
_SHOWN = 100  # the most characters of a value in a message

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = _SHOWN


class Rows(NamedTuple):
    """Annotations in columns. Dimensions: ``I`` images, ``N`` annotations."""

    categories: Sequence[tuple[int, str]]
    """Id and name of each category."""
    image_ids: np.ndarray
    """[I] int64."""
    file_names: Sequence[str]
    """[I] the file name of each image."""
    sizes: np.ndarray
    """[I, 2] int64, (height, width) in pixels."""
    ids: np.ndarray
    """[N] int64."""
    owners: np.ndarray
    """[N] int64, the id of each annotation's image."""
    category_ids: np.ndarray
    """[N] int64."""
    boxes: np.ndarray
    """[N, 4] float64, xywh in pixels."""
    areas: np.ndarray
    """[N] float64, in pixels; NaN if the annotation has no area."""
    crowds: np.ndarray
    """[N] int64, 0 or 1."""
    name: Callable[[int], str]
    """The name of an annotation in messages, by its row."""
    refused_images: frozenset[int] = frozenset()
    """Ids of the images that are already counted as errors."""
    segmentations: Sequence[bytes] | None = None
    """[N] the JSON of each annotation's ``segmentation``. None: masks are not read."""
    segment_ids: np.ndarray | None = None
    """[N] int64, the id of each annotation's pixels in its panoptic PNG."""


class _Refused(Exception):
    """Raised for an item that cannot be used. Its arguments are the kind of fault and a sentence about it."""


def rows_of_items(content: dict[str, Any], faults: Faults, *, masks: bool = False) -> Rows:
    """Converts the three lists of an instances form, whose items may have any type, to columns.

    Whole numbers that are written as texts or as decimals ("1", 1.0) are read and counted. A missing bbox is computed
    from the polygons of ``segmentation``, if there are any.

    Args:
      content: the lists ``images``, ``annotations`` and ``categories``.
      faults: receives the items that cannot be used, and the unusual ones that were read.
      masks: also read ``segmentation``.
    """
    categories = _each(content["categories"], lambda item: _category(item, faults), faults)
    refused: set[int] = set()
    images = _each(content["images"], lambda item: _image(item, refused, faults), faults)
    annotations = _each(content["annotations"], lambda item: _annotation(item, faults), faults)
    ids, file_names, heights, widths = zip(*images, strict=True) if images else ((), (), (), ())
    columns = zip(*annotations, strict=True) if annotations else ((),) * 8
    numbers, owners, category_ids, boxes, areas, crowds, names, segmentations = columns
    return Rows(
        categories,
        np.array(ids, np.int64),
        file_names,
        np.array([heights, widths], np.int64).T.reshape(-1, 2),
        np.array(numbers, np.int64),
        np.array(owners, np.int64),
        np.array(category_ids, np.int64),
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(areas, np.float64),
        np.array(crowds, np.int64),
        lambda row: names[row] or f"annotation {numbers[row]}",
        frozenset(refused),
        segmentations=[_json_text(value) for value in segmentations] if masks else None,
    )


def _json_text(value: Any) -> bytes:
    """A value of a JSON file as JSON. Numbers that are not finite stay what Python's json writes."""
    return json.dumps(value, separators=(",", ":")).encode()


def shown(value: Any) -> str:
    """A value of any type as one short line of text."""
    text = _short.repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _each(items: list[Any], read: Callable[[Any], tuple], faults: Faults) -> list[tuple]:
    rows = []
    for item in items:
        try:
            rows.append(read(item))
        except _Refused as fault:
            faults.error(*fault.args)
    return rows


def _category(item: Any, faults: Faults) -> tuple[int, str]:
    category_id = _integer(item, "id", "category", faults)
    name = item.get("name")
    if name is None or isinstance(name, int | float):  # the name is a number or missing
        name = str(category_id if name is None else name)
    elif not _is_text(name) or len(name) > LONGEST_NAME:
        raise _wrong_type(item, "name", "category", f"plain text of at most {LONGEST_NAME} characters")
    return category_id, name


def _image(item: Any, refused: set[int], faults: Faults) -> tuple[int, str, int, int]:
    image_id = _integer(item, "id", "image", faults)
    try:
        if not _is_text(item.get("file_name")):
            raise _wrong_type(item, "file_name", "image", "plain text")
        return image_id, item["file_name"], *(_integer(item, side, "image", faults) for side in ("height", "width"))
    except _Refused:
        refused.add(image_id)
        raise


def _annotation(item: Any, faults: Faults) -> tuple:
    numbers = [_integer(item, name, "annotation", faults) for name in ("id", "image_id", "category_id")]
    box = _box(item, faults)
    area = item.get("area")
    if area is not None and (_number(area) is None or not 0 <= _number(area) < LARGEST):  # type: ignore[operator]
        raise _Refused(
            "annotations with an invalid area",
            f"{_name(item, 'annotation')} has area={shown(area)}, which must be a number of pixels",
        )
    crowd = item.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise _Refused(
            "annotations with an invalid iscrowd",
            f"{_name(item, 'annotation')} has iscrowd={shown(crowd)}, which must be 0 or 1",
        )
    where = item.get("where")
    area = math.nan if area is None else _number(area)
    return *numbers, box, area, int(crowd or 0), where if _is_text(where) else "", item.get("segmentation")


def _box(item: dict[str, Any], faults: Faults) -> list[float]:
    box, polygons = item.get("bbox"), item.get("segmentation")
    if box in (None, []) and isinstance(polygons, list) and polygons:
        numbers = [_number(value) for polygon in polygons if isinstance(polygon, list) for value in polygon]
        if numbers and None not in numbers:
            xs, ys = numbers[::2], numbers[1::2]
            x0, y0, x1, y1 = min(xs), min(ys), max(xs), max(ys)  # type: ignore[type-var]
            faults.add("annotations without bbox got the bounding box of their polygons", _name(item, "annotation"))
            return [x0, y0, x1 - x0, y1 - y0]  # type: ignore[operator,list-item]
    if not isinstance(box, list):
        raise _wrong_type(item, "bbox", "annotation", "a list of four numbers")
    numbers = [_number(value) for value in box]
    if len(box) != 4 or any(number is None or abs(number) >= LARGEST for number in numbers):
        raise _Refused(
            "boxes that are not four finite numbers",
            f"{_name(item, 'annotation')} has bbox={shown(box)}, which must be four finite numbers [x, y, width, "
            "height] in pixels",
        )
    if any(isinstance(value, str) for value in box):
        faults.add("boxes whose numbers are written as texts were read", _name(item, "annotation"))
    return numbers  # type: ignore[return-value]


def _integer(item: Any, name: str, what: str, faults: Faults) -> int:
    """A whole number, perhaps written as a text or a decimal."""
    if not isinstance(item, dict):
        raise _Refused(
            f"{_plural(what)} that are not JSON objects", f"{shown(item)} is not a JSON object, as each {what} must be"
        )
    value = item.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and -_LARGEST_ID <= value < _LARGEST_ID:
        return value
    number = _number(value)
    if number is None or not number.is_integer() or abs(number) >= 2**53:
        raise _wrong_type(item, name, what, "a whole number")
    faults.add("ids or sizes that are written as texts or decimals were read", f"{_name(item, what)}, {name}")
    return int(number)


def _number(value: Any) -> float | None:
    """A finite number, perhaps written as a text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not UNUSABLE_TEXT.search(value)


def _wrong_type(item: dict[str, Any], name: str, what: str, expected: str) -> _Refused:
    return _Refused(
        f"{_plural(what)} whose {name} is missing or of the wrong type",
        f"{_name(item, what)} has {name}={shown(item.get(name))}, which must be {expected}",
    )


def _plural(what: str) -> str:
    return "categories" if what == "category" else f"{what}s"


def _name(item: dict[str, Any], what: str) -> str:
    if _is_text(item.get("where")):
        return item["where"]
    return f"{what} {shown(item['id'])}" if "id" in item else f"{with_article(what)} without id"
