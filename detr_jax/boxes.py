"""Box formats, areas and overlaps, for arrays of numpy and of JAX alike.

Dimensions: ``N`` and ``M`` are numbers of boxes, ``...`` any leading dimensions.

Three formats are used, and the name of a variable says which one it holds:

* ``cxcywh``: centre x, centre y, width, height (the network's own format, normalised to 0..1);
* ``xyxy``: left, top, right, bottom (corners; pixels or normalised);
* ``xywh``: left, top, width, height (COCO's format in files; pixels).

Every function returns an array of the kind and dtype that it was given.
"""

from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Shaped

Array = TypeVar("Array", np.ndarray, jax.Array)

_SMALLEST_AREA = 1e-12  # keeps 0 / 0 away from boxes without area; far below a pixel of any image


def cxcywh_to_xyxy(boxes_cxcywh: Shaped[Array, "*N 4"]) -> Shaped[Array, "*N 4"]:
    """Converts centre format [..., 4] to corners [..., 4], in the same units."""
    center, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return boxes_cxcywh.__array_namespace__().concatenate([center - 0.5 * size, center + 0.5 * size], axis=-1)


def xyxy_to_cxcywh(boxes_xyxy: Shaped[Array, "*N 4"]) -> Shaped[Array, "*N 4"]:
    """Converts corners [..., 4] to centre format [..., 4], in the same units."""
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return boxes_xyxy.__array_namespace__().concatenate(
        [0.5 * (top_left + bottom_right), bottom_right - top_left], axis=-1
    )


def xyxy_to_xywh(boxes_xyxy: Shaped[Array, "*N 4"]) -> Shaped[Array, "*N 4"]:
    """Converts corners [..., 4] to left, top, width and height [..., 4], in the same units."""
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return boxes_xyxy.__array_namespace__().concatenate([top_left, bottom_right - top_left], axis=-1)


def inverse_sigmoid(x: Shaped[Array, "*N"], eps: float = 1e-5) -> Shaped[Array, "*N"]:
    """The logit of x in 0..1, with x and 1 - x lifted to at least ``eps``. The gradient is 0 where they are lifted.

    Source: Deformable DETR, section 4.2.
    """
    xp = x.__array_namespace__()
    x = xp.clip(x, 0, 1)
    return xp.log(xp.maximum(x, eps) / xp.maximum(1 - x, eps))


def area(boxes_xyxy: Shaped[Array, "*N 4"]) -> Shaped[Array, "*N"]:
    """Areas [...] of boxes [..., 4] in corner format."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def intersection_area(a_xyxy: Shaped[Array, "*#N 4"], b_xyxy: Shaped[Array, "*#N 4"]) -> Shaped[Array, "*N"]:
    """Areas [...] that boxes have in common; the leading dimensions broadcast as for `generalized_iou`."""
    xp = a_xyxy.__array_namespace__()
    left_top = xp.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    right_bottom = xp.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    return xp.prod(xp.maximum(right_bottom - left_top, 0), axis=-1)


def iou(a_xyxy: Shaped[Array, "*#N 4"], b_xyxy: Shaped[Array, "*#N 4"]) -> Shaped[Array, "*N"]:
    """Intersection over union, in 0..1; the leading dimensions broadcast as for `generalized_iou`."""
    intersection = intersection_area(a_xyxy, b_xyxy)
    union = area(a_xyxy) + area(b_xyxy) - intersection
    return intersection / a_xyxy.__array_namespace__().maximum(union, _SMALLEST_AREA)


def generalized_iou(a_xyxy: Shaped[Array, "*#N 4"], b_xyxy: Shaped[Array, "*#N 4"]) -> Shaped[Array, "*N"]:
    """Generalised intersection over union, IoU - (hull - union) / hull, in -1..1.

    The leading dimensions broadcast: ``[..., 4]`` with ``[..., 4]`` compares box by box, and
    ``[N, 1, 4]`` with ``[1, M, 4]`` compares every pair and gives ``[N, M]``.

    Boxes without area give finite values and finite gradients.

    Source: Rezatofighi et al., "Generalized Intersection over Union" (2019), algorithm 1;
    DETR, appendix A.2.
    """
    xp = a_xyxy.__array_namespace__()
    intersection = intersection_area(a_xyxy, b_xyxy)
    union = area(a_xyxy) + area(b_xyxy) - intersection

    hull_left_top = xp.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_right_bottom = xp.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = xp.prod(hull_right_bottom - hull_left_top, axis=-1)

    overlap = intersection / xp.maximum(union, _SMALLEST_AREA)
    return overlap - (hull - union) / xp.maximum(hull, _SMALLEST_AREA)
