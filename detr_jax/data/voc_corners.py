"""Whether the corners of a VOC data set are pixels counted from 1, or edges counted from 0."""

from collections.abc import Iterable

from detr_jax.data.voc_xml import Thing

_FRACTIONS = 0.05  # share of boxes with fractions from which on corners are edges; the official sets have fewer
_ZEROS = 0.002  # share of boxes that begin at 0 from which on corners are edges; fewer are slips
_DECIMALS = 0.95  # share of boxes whose corners are all written with a decimal point


def counted_from_one(things: Iterable[Thing]) -> tuple[bool, str]:
    """How corners are meant, as all boxes of a data set show, and why.

    The official files, and the tools that follow them, count pixels from 1 and include the last one: a box that covers
    an image of 40 pixels goes from 1 to 40. Others (CVAT, Datumaro, Roboflow) write edges: it goes from 0 to 40, and
    corners may lie between pixels. Boxes without area, which are slips, and outlines do not count.
    """
    boxes = fractions = zeros = decimals = 0
    for thing in things:
        x0, y0, x1, y1 = thing.corners
        if thing.outline or x0 == x1 or y0 == y1:
            continue
        boxes += 1
        fractions += not all(corner.is_integer() for corner in thing.corners)
        zeros += x0 == 0 or y0 == 0
        decimals += thing.decimals
    if not boxes:
        return True, "there is no box"
    if fractions >= _FRACTIONS * boxes:
        return False, f"{fractions} of {boxes} boxes have corners that are not whole numbers"
    if zeros and zeros >= _ZEROS * boxes:
        return False, f"{zeros} of {boxes} boxes begin at 0"
    if decimals >= _DECIMALS * boxes:
        return False, f"{decimals} of {boxes} boxes have corners written with a decimal point"
    exceptions = [f"{fractions} with fractions"] * bool(fractions) + [f"{zeros} that begin at 0"] * bool(zeros)
    but = f", but for {' and '.join(exceptions)}" if exceptions else ""
    return True, f"the corners of {boxes} boxes are whole numbers from 1 on{but}"
