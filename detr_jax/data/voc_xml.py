"""Read the XML files of Pascal VOC data sets."""

import codecs
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from typing import NamedTuple

from detr_jax.data.annotation_rows import shown
from detr_jax.data.text_files import decode_text
from detr_jax.files import LARGEST_TEXT, read_bytes

_ENTITY = re.compile("<!ENTITY", re.IGNORECASE)
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_BARE_AMPERSAND = re.compile(r"&(?!#?\w+;)")
_EXPAT = ("utf-8", "ascii", "us-ascii", "iso-8859-1", "latin-1")  # encodings that the parser supports
_SLOW = ("idna", "punycode")  # the time to decode these grows with the square of the length
_YES = ("1", "1.0", "true", "yes")


class VocObject(NamedTuple):
    """An object in an XML file."""

    number: int
    """Its position among the objects, from 1."""
    name: str
    """The name of its class."""
    corners: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax in pixels as in the file, but sorted."""
    difficult: bool
    """Whether the object is marked difficult."""
    from_polygon: bool
    """Whether the corners are the bounds of a polygon or of a rotated box, whose numbers are always edges."""
    decimals: bool
    """Whether every corner is written with a decimal point."""
    swapped: bool
    """Whether xmin was above xmax, or ymin above ymax."""


class Description(NamedTuple):
    """The content of an XML file."""

    size: tuple[int, int] | None = None
    """(height, width) of the image in pixels; None if the file does not give it."""
    objects: tuple[VocObject, ...] = ()
    file_name: str = ""
    """The file name of the image, as in the XML file."""
    is_annotation: bool = True
    """False for another kind of XML file."""
    faults: tuple[tuple[str, str], ...] = ()
    """Kind and sentence of each fault, for `Faults.error`."""
    oddities: tuple[tuple[str, str], ...] = ()
    """Kind and name of each unusual item that was read, for `Faults.add`."""


def read_description(path: str) -> Description:
    """Reads an XML file. Errors are recorded in ``faults`` of the result."""
    try:
        root = _parse(read_bytes(path, LARGEST_TEXT))
    except FileNotFoundError:
        sentence = f"{path} cannot be read (it does not exist): each listed image must have an XML file"
        return Description(faults=(("annotation files that are missing", sentence),))
    except (OSError, ValueError, LookupError, ElementTree.ParseError, RecursionError) as error:
        sentence = f"{path} cannot be read as XML ({error})"
        return Description(faults=(("annotation files that cannot be read as XML", sentence),))
    if root.tag.lower() != "annotation":
        sentence = f"{path} has the root <{root.tag}>, but the root must be <annotation>"
        return Description(is_annotation=False, faults=(("XML files that are not annotations of VOC", sentence),))
    objects: list[VocObject] = []
    faults: list[tuple[str, str]] = []
    oddities: list[tuple[str, str]] = []
    for number, element in enumerate(root.findall("object"), start=1):
        where = f"{path} object {number}"
        name = (element.findtext("name") or "").strip()
        if not name:
            faults.append(("objects without a name", f"{where} has no name: the name must be its class"))
            continue
        difficult = (element.findtext("difficult") or "").strip().lower() in _YES
        boxes: list[ElementTree.Element | None] = [*element.findall("bndbox")]
        if len(boxes) > 1:
            oddities.append(("objects with several boxes were read as one object per box", where))
        for box in boxes or [None]:
            texts = [None if box is None else box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")]
            corners = _numbers(texts)
            from_polygon = not all(map(math.isfinite, corners)) and not any(text and text.strip() for text in texts)
            if from_polygon and (bounds := _bounds(element)) is not None:
                corners = bounds
                oddities.append(("polygons and rotated boxes were read as their bounding boxes", where))
            if not all(map(math.isfinite, corners)):
                faults.append(
                    (
                        "boxes that are not four numbers",
                        f"{where} has bndbox={shown(texts)}, which must be xmin, ymin, xmax and ymax in pixels",
                    )
                )
                continue
            x0, y0, x1, y1 = corners
            swapped = x0 > x1 or y0 > y1
            if swapped:
                oddities.append(("boxes with corners in the wrong order were read with swapped corners", where))
            ordered = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
            decimals = all(text is not None and "." in text for text in texts)
            objects.append(VocObject(number, name, ordered, difficult, from_polygon, decimals, swapped))
    height, width = _numbers([root.findtext(f"size/{side}") for side in ("height", "width")])
    given = height >= 1 and width >= 1 and math.isfinite(height) and math.isfinite(width)
    size = (int(height), int(width)) if given else None
    file_name = (root.findtext("filename") or "").strip()
    return Description(size, tuple(objects), file_name, True, tuple(faults), tuple(oddities))


def _parse(content: bytes) -> ElementTree.Element:
    """The root of an XML file. Namespaces are removed from its tags.

    Raises:
      ValueError: the file is damaged, or defines entities, which can expand without limit or read other files.
      LookupError: the encoding is unknown.
    """
    declared = _DECLARED.match(content)
    encoding = declared[1].decode().lower() if declared else "utf-8"
    if encoding in _SLOW:
        raise LookupError(f"unknown encoding: {encoding}")
    marked = content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = decode_text(content) if marked or encoding in _EXPAT else content.decode(encoding)
    if _ENTITY.search(text):
        raise ValueError("it defines entities, which are not supported: replace them by their text")
    source = _DECLARATION.sub("", text, count=1) if marked or encoding not in _EXPAT else content
    try:
        root = ElementTree.fromstring(source)
    except ElementTree.ParseError as error:
        line = text.splitlines()[error.position[0] - 1 : error.position[0]]
        hint = ", where & must be written &amp;" if any(map(_BARE_AMPERSAND.search, line)) else ""
        raise ValueError(f"{error}{hint}") from None
    for element in root.iter():
        if isinstance(element.tag, str) and element.tag.startswith("{"):
            element.tag = element.tag.partition("}")[2]
    return root


def _numbers(texts: Sequence[str | None]) -> list[float]:
    return [_number(text) for text in texts]


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _bounds(element: ElementTree.Element) -> list[float] | None:
    """The bounds xmin, ymin, xmax, ymax of an object's rotated box (roLabelImg) or polygon. None if it has neither."""
    rotated = element.find("robndbox")
    if rotated is not None:
        cx, cy, w, h, angle = _numbers([rotated.findtext(name) for name in ("cx", "cy", "w", "h", "angle")])
        extent_x = abs(w * math.cos(angle)) + abs(h * math.sin(angle)) if math.isfinite(angle) else math.nan
        extent_y = abs(w * math.sin(angle)) + abs(h * math.cos(angle)) if math.isfinite(angle) else math.nan
        return [cx - extent_x / 2, cy - extent_y / 2, cx + extent_x / 2, cy + extent_y / 2]
    polygon = element.find("polygon")
    if polygon is None:
        return None
    xs = [_number(one.text) for one in polygon.iter() if re.fullmatch(r"x\d*", one.tag)]
    ys = [_number(one.text) for one in polygon.iter() if re.fullmatch(r"y\d*", one.tag)]
    return [min(xs), min(ys), max(xs), max(ys)] if xs and ys and all(map(math.isfinite, xs + ys)) else None
