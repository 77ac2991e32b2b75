"""Decide whether the corners of a VOC data set are pixels counted from 1, or edges counted from 0."""

from collections.abc import Iterable

from detr_jax.data.voc_xml import VocObject

_FRACTIONS = 0.05  # from this fraction of boxes with decimals on, corners are edges; official data have fewer
_ZEROS = 0.002  # from this fraction of boxes that start at 0 on, corners are edges; fewer are mistakes
_DECIMALS = 0.95  # the same for boxes whose corners are all written with a decimal point


def counted_from_one(objects: Iterable[VocObject]) -> tuple[bool, str]:
    """Whether corners are pixels counted from 1, and the reason as a clause for messages.

    The official files count pixels from 1 and include the last one. A box that covers an image of 40 pixels goes from 1
    to 40. Other tools (CVAT, Datumaro, Roboflow) write edges. The same box goes from 0 to 40, and corners may lie
    between pixels. Boxes without area, which are mistakes, do not count. Bounds of polygons and rotated boxes do not
    count either, because they are always edges.

    Args:
      objects: the objects of all images of the data set.
    """
    boxes = fractions = zeros = decimals = 0
    for one in objects:
        x0, y0, x1, y1 = one.corners
        if one.from_polygon or x0 == x1 or y0 == y1:
            continue
        boxes += 1
        fractions += not all(corner.is_integer() for corner in one.corners)
        zeros += x0 == 0 or y0 == 0
        decimals += one.decimals
    if not boxes:
        return True, "there is no box"
    if fractions >= _FRACTIONS * boxes:
        return False, f"{fractions} of {boxes} boxes have corners that are not whole numbers"
    if zeros and zeros >= _ZEROS * boxes:
        return False, f"{zeros} of {boxes} boxes start at 0"
    if decimals >= _DECIMALS * boxes:
        return False, f"{decimals} of {boxes} boxes have corners written with a decimal point"
    exceptions = [f"{fractions} with fractions"] * bool(fractions) + [f"{zeros} that start at 0"] * bool(zeros)
    but = f", but for {' and '.join(exceptions)}" if exceptions else ""
    return True, f"the corners of {boxes} boxes are whole numbers from 1 on{but}"
