"""The checks of annotations, in one place: every reader translates into COCO's instances form, and it is judged here.

An instances form is a dictionary of three lists (Lin et al., 2014): ``images`` with id, file_name, height and width,
``annotations`` with id, image_id, category_id, bbox (xywh in pixels), area and iscrowd, ``categories`` with id and
name. An annotation may say ``where`` it comes from, such as its file and row, for messages.
"""

import re
import reprlib
from typing import Any, NamedTuple

import numpy as np

from detr_jax.data.source import Faults, Objects

_BOX_SLACK = 1.0  # pixels by which boxes of COCO pass their image through rounding alone
_FLOAT32_STEP = 2.0**-22  # two numbers whose relative difference is larger stay apart as float32
_LARGEST_ID = 2**53  # the evaluation keeps ids as float64
_LARGEST = 2**31  # labels and sizes are kept as int32
_UNUSABLE_TEXT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # control characters and halves of characters

_SHOWN = 100  # characters of a value in a message

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = _SHOWN


class Instances(NamedTuple):
    """Annotations of which every one is usable."""

    categories: dict[int, str]
    """Name by label; no two names are the same."""
    images: list[dict[str, Any]]
    """id, file_name, height and width of each image."""
    objects: list[Objects]
    """What to train on, by index of the image: no crowds, boxes clipped to the image, none without area."""
    annotations: list[dict[str, Any]]
    """What to evaluate against: boxes as they were given, crowds included, ids counted from 1 (the evaluation takes
    0 for "no match")."""
    faults: Faults


class _Refused(Exception):
    """An item that cannot be used: the kind of fault, and a sentence about it."""


def check_instances(content: dict[str, Any], faults: Faults) -> Instances:
    """Sorts an instances form into what can be used and, by kind and counted, what is wrong with it.

    Args:
      content: the three lists; what is in them may be anything.
      faults: where to count; it may have counted what the reader found.
    """
    categories = _checked_categories(content["categories"], faults)
    images, listed = _checked_images(content["images"], faults)
    objects, annotations = _checked_annotations(content["annotations"], categories, images, listed, faults)
    return Instances(categories, list(images.values()), objects, annotations, faults)


def shown(value: Any) -> str:
    """A value of unknown kind and length, in one short line."""
    text = _short.repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _field(item: Any, name: str, kind: type, what: str) -> Any:
    """A field of the wanted type."""
    if not isinstance(item, dict):
        raise _Refused(
            f"{_plural(what)} that are no JSON objects", f"{shown(item)} is not a JSON object, as each {what} must be"
        )
    value = item.get(name)
    usable = isinstance(value, kind) and not isinstance(value, bool)
    if not usable or (kind is str and _UNUSABLE_TEXT.search(str(value))):
        wanted = {int: "a whole number", str: "plain text", list: "a list of four numbers"}[kind]
        raise _Refused(
            f"{_plural(what)} whose {name} is missing or of the wrong type",
            f"{_name(item, what)} has {name}={shown(value)}, which must be {wanted}",
        )
    return value


def _plural(what: str) -> str:
    return "categories" if what == "category" else f"{what}s"


def _name(item: dict[str, Any], what: str) -> str:
    if isinstance(where := item.get("where"), str) and not _UNUSABLE_TEXT.search(where):
        return where
    return f"{what} {shown(item['id'])}" if "id" in item else f"a {what} without id"


def _checked_categories(items: list[Any], faults: Faults) -> dict[int, str]:
    categories: dict[int, str] = {}
    taken: set[str] = set()
    for item in items:
        try:
            label = _field(item, "id", int, "category")
            if not 0 <= label < _LARGEST:
                raise _Refused(
                    "categories whose id is out of range",
                    f"a category has the id {shown(label)}, which must not be negative nor reach {_LARGEST}",
                )
            if label in categories:
                raise _Refused(
                    "categories with the id of another", f"two categories have the id {label}; ids must be unique"
                )
            name = item.get("name")
            name = str(label) if name is None else name if isinstance(name, int | float) else None
            name = _field(item, "name", str, "category") if name is None else str(name)
            if name in taken:
                faults.add("categories with the name of another have their id behind it", f"category {label}, {name!r}")
                name = f"{name} ({label})"
            taken.add(name)
            categories[label] = name
        except _Refused as fault:
            faults.error(*fault.args)
    return categories


def _checked_images(items: list[Any], faults: Faults) -> tuple[dict[int, dict[str, Any]], set[int]]:
    """Usable images by id, and the ids of all, usable or not."""
    images: dict[int, dict[str, Any]] = {}
    listed: set[int] = set()
    for item in items:
        try:
            image_id = _field(item, "id", int, "image")
            listed.add(image_id)
            _field(item, "file_name", str, "image")
            for side in ("height", "width"):
                if not 1 <= _field(item, side, int, "image") < _LARGEST:
                    raise _Refused(
                        "images whose height or width is out of range",
                        f"image {image_id} has {side}={shown(item[side])}, which must be positive and below {_LARGEST}",
                    )
            if not 0 <= image_id < _LARGEST_ID:
                raise _Refused(
                    "images whose id is out of range",
                    f"an image has the id {shown(image_id)}, which must not be negative nor reach 2**53",
                )
            if image_id in images:
                raise _Refused(
                    "images with the id of another", f"two images have the id {image_id}; ids must be unique"
                )
            images[image_id] = {name: item[name] for name in ("id", "file_name", "height", "width")}
        except _Refused as fault:
            faults.error(*fault.args)
    if not items:
        faults.error("empty lists of images", "no image is listed, and at least one is needed")
    return images, listed


def _checked_annotations(
    items: list[Any],
    categories: dict[int, str],
    images: dict[int, dict[str, Any]],
    listed: set[int],
    faults: Faults,
) -> tuple[list[Objects], list[dict[str, Any]]]:
    """Objects by index of the image, and all annotations for the evaluation."""
    boxes: dict[int, list[tuple[float, ...]]] = {image_id: [] for image_id in images}
    labels: dict[int, list[int]] = {image_id: [] for image_id in images}
    annotations: list[dict[str, Any]] = []
    seen: set[int] = set()
    for item in items:
        try:
            annotation = _checked_annotation(item, categories, images, listed, seen, faults)
        except _Refused as fault:
            faults.error(*fault.args)
            continue
        image_id = annotation["image_id"]
        if image_id not in images:
            continue  # the image was refused, and that was told
        annotations.append({"id": len(annotations) + 1, **annotation})
        if annotation["iscrowd"]:
            continue
        clipped = _clipped(annotation["bbox"], images[image_id], item, faults)
        if clipped is not None:
            boxes[image_id].append(clipped)
            labels[image_id].append(annotation["category_id"])
    objects = [
        Objects(np.array(boxes[image_id], np.float32).reshape(-1, 4), np.array(labels[image_id], np.int32))
        for image_id in images
    ]
    return objects, annotations


def _checked_annotation(
    item: Any,
    categories: dict[int, str],
    images: dict[int, dict[str, Any]],
    listed: set[int],
    seen: set[int],
    faults: Faults,
) -> dict[str, Any]:
    """image_id, category_id, bbox, area and iscrowd of an annotation."""
    annotation_id = _field(item, "id", int, "annotation")
    if annotation_id in seen:
        raise _Refused(
            "annotations with the id of another", f"two annotations have the id {shown(annotation_id)}; make it unique"
        )
    seen.add(annotation_id)
    image_id = _field(item, "image_id", int, "annotation")
    label = _field(item, "category_id", int, "annotation")
    if image_id not in listed:
        raise _Refused(
            "annotations of an image that is not listed",
            f"{_name(item, 'annotation')} belongs to image {shown(image_id)}, which is not listed under images",
        )
    if label not in categories:
        raise _Refused(
            "annotations of an unknown category",
            f"{_name(item, 'annotation')} has category_id={shown(label)}, which is not listed under categories",
        )
    box = _field(item, "bbox", list, "annotation")
    if len(box) != 4 or not all(map(_is_number, box)):
        raise _Refused(
            "boxes that are not four finite numbers",
            f"{_name(item, 'annotation')} has bbox={shown(box)}, which must be four finite numbers [x, y, width, "
            "height] in pixels",
        )
    crowd = item.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise _Refused(
            "annotations of unclear iscrowd",
            f"{_name(item, 'annotation')} has iscrowd={shown(crowd)}, which must be 0 or 1",
        )
    area = item.get("area")
    if area is None:
        area = max(box[2], 0) * max(box[3], 0)
        faults.add("annotations without area were given that of their box", _name(item, "annotation"))
    elif not _is_number(area) or area < 0:
        raise _Refused(
            "annotations of unclear area",
            f"{_name(item, 'annotation')} has area={shown(area)}, which must be a number of pixels",
        )
    return {"image_id": image_id, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd or 0)}


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number of a size that pixels can have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _clipped(box: list[float], image: dict[str, Any], item: Any, faults: Faults) -> tuple[float, ...] | None:
    """xywh to xyxy within the image; None where no area is left."""
    x, y, w, h = box
    width, height = image["width"], image["height"]

    def told() -> str:
        return f"{_name(item, 'annotation')} of image {image['id']}, bbox {box} in {width} x {height}"

    x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    if w <= x1 * _FLOAT32_STEP or h <= y1 * _FLOAT32_STEP:
        faults.add("boxes without area were dropped", told())
        return None
    if x1 - x0 <= x1 * _FLOAT32_STEP or y1 - y0 <= y1 * _FLOAT32_STEP:
        faults.add("boxes wholly outside of their image were dropped", told())
        return None
    if max(-x, -y, x + w - width, y + h - height) > _BOX_SLACK:
        faults.add("boxes that reach outside of their image were clipped", told())
    return x0, y0, x1, y1
