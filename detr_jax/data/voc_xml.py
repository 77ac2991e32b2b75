"""The XML file that describes an image of a Pascal VOC data set."""

import codecs
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from detr_jax.data.annotation_rows import shown
from detr_jax.data.text_files import decode_text

_ENTITY = re.compile("<!ENTITY", re.IGNORECASE)
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
_BARE_AMPERSAND = re.compile(r"&(?!#?\w+;)")
_EXPAT = ("utf-8", "ascii", "us-ascii", "iso-8859-1", "latin-1")  # encodings that the parser knows
_YES = ("1", "1.0", "true", "yes")


class Thing(NamedTuple):
    """An object of a description."""

    number: int
    """Its position among the objects, from 1."""
    name: str
    corners: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax in pixels as the file gives them, the smaller first."""
    difficult: bool
    outline: bool
    """Whether the corners are the bounds of a polygon or of a rotated box, whose numbers are edges in any case."""
    decimals: bool
    """Whether every corner is written with a decimal point."""
    turned: bool
    """Whether a larger corner was given first."""


class Description(NamedTuple):
    """What an XML file says."""

    size: tuple[int, int] | None = None
    """(height, width) in pixels, if it is given."""
    objects: tuple[Thing, ...] = ()
    file_name: str = ""
    """The image's, as the file gives it."""
    is_annotation: bool = True
    """False if it is another kind of XML."""
    faults: tuple[tuple[str, str], ...] = ()
    """Kind and sentence of each fault, for `Faults.error`."""
    oddities: tuple[tuple[str, str], ...] = ()
    """Kind and name of what was read although it is unusual, for `Faults.add`."""


def read_description(path: str) -> Description:
    """Reads an XML file; what is wrong with it is in its ``faults``."""
    try:
        root = _parse(Path(path).read_bytes())
    except FileNotFoundError:
        sentence = f"{path} cannot be read (it does not exist): each listed image must have an XML file"
        return Description(faults=(("annotation files that are missing", sentence),))
    except (OSError, ValueError, LookupError, ElementTree.ParseError, RecursionError) as error:
        sentence = f"{path} cannot be read as XML ({error})"
        return Description(faults=(("annotation files that cannot be read as XML", sentence),))
    if root.tag.lower() != "annotation":
        sentence = f"{path} has the root <{root.tag}>, which must be <annotation>"
        return Description(is_annotation=False, faults=(("XML files that are not annotations of VOC", sentence),))
    objects: list[Thing] = []
    faults: list[tuple[str, str]] = []
    oddities: list[tuple[str, str]] = []
    for number, element in enumerate(root.findall("object"), start=1):
        where = f"{path} object {number}"
        name = (element.findtext("name") or "").strip()
        if not name:
            faults.append(("objects without a name", f"{where} has no name, which must be its class"))
            continue
        difficult = (element.findtext("difficult") or "").strip().lower() in _YES
        boxes: list[ElementTree.Element | None] = [*element.findall("bndbox")]
        if len(boxes) > 1:
            oddities.append(("objects of several boxes were read as one object for each box", where))
        for box in boxes or [None]:
            texts = [None if box is None else box.findtext(side) for side in ("xmin", "ymin", "xmax", "ymax")]
            corners = _numbers(texts)
            outline = not all(map(math.isfinite, corners)) and not any(text and text.strip() for text in texts)
            if outline and (bounds := _bounds(element)) is not None:
                corners = bounds
                oddities.append(("objects of a polygon or a rotated box were read as its bounding box", where))
            if not all(map(math.isfinite, corners)):
                faults.append(
                    (
                        "boxes that are not four numbers",
                        f"{where} has bndbox={shown(texts)}, which must be xmin, ymin, xmax and ymax in pixels",
                    )
                )
                continue
            x0, y0, x1, y1 = corners
            turned = x0 > x1 or y0 > y1
            if turned:
                oddities.append(("boxes whose corners are in the wrong order were read with these exchanged", where))
            ordered = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
            decimals = all(text is not None and "." in text for text in texts)
            objects.append(Thing(number, name, ordered, difficult, outline, decimals, turned))
    height, width = _numbers([root.findtext(f"size/{side}") for side in ("height", "width")])
    given = height >= 1 and width >= 1 and math.isfinite(height) and math.isfinite(width)
    size = (int(height), int(width)) if given else None
    file_name = (root.findtext("filename") or "").strip()
    return Description(size, tuple(objects), file_name, True, tuple(faults), tuple(oddities))


def _parse(content: bytes) -> ElementTree.Element:
    """The root of an XML file, with tags without namespaces.

    Raises:
      ValueError: it defines entities, which can grow without end, or read other files.
      LookupError: its encoding is unknown.
      ElementTree.ParseError: it is damaged.
    """
    declared = _DECLARED.match(content)
    encoding = declared[1].decode().lower() if declared else "utf-8"
    marked = content.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = decode_text(content) if marked or encoding in _EXPAT else content.decode(encoding)
    if _ENTITY.search(text):
        raise ValueError("it defines entities, which are refused: write their text in their place")
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
    """xmin, ymin, xmax, ymax of an object's polygon, or of its rotated box (roLabelImg); None if it has neither."""
    rotated = element.find("robndbox")
    if rotated is not None:
        cx, cy, w, h, angle = _numbers([rotated.findtext(name) for name in ("cx", "cy", "w", "h", "angle")])
        across = abs(w * math.cos(angle)) + abs(h * math.sin(angle)) if math.isfinite(angle) else math.nan
        down = abs(w * math.sin(angle)) + abs(h * math.cos(angle)) if math.isfinite(angle) else math.nan
        return [cx - across / 2, cy - down / 2, cx + across / 2, cy + down / 2]
    polygon = element.find("polygon")
    if polygon is None:
        return None
    xs = [_number(one.text) for one in polygon.iter() if re.fullmatch(r"x\d*", one.tag)]
    ys = [_number(one.text) for one in polygon.iter() if re.fullmatch(r"y\d*", one.tag)]
    return [min(xs), min(ys), max(xs), max(ys)] if xs and ys and all(map(math.isfinite, xs + ys)) else None
