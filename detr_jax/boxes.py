"""Box formats, areas and overlaps.

Dimensions: ``N`` and ``M`` are numbers of boxes, ``...`` any leading dimensions.

Two formats are used, and the name of a variable says which one it holds:

* ``cxcywh``: centre x, centre y, width, height (the network's own format, normalised to 0..1);
* ``xyxy``: left, top, right, bottom (corners; pixels or normalised).
"""

import jax
import jax.numpy as jnp

_SMALLEST_AREA = 1e-12  # keeps 0 / 0 away from boxes without area; far below a pixel of any image


def cxcywh_to_xyxy(boxes_cxcywh: jax.Array) -> jax.Array:
    """Centre format [..., 4] to corners [..., 4], in the same units."""
    center, size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:]
    return jnp.concatenate([center - 0.5 * size, center + 0.5 * size], axis=-1)


def xyxy_to_cxcywh(boxes_xyxy: jax.Array) -> jax.Array:
    """Corners [..., 4] to centre format [..., 4], in the same units."""
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return jnp.concatenate([0.5 * (top_left + bottom_right), bottom_right - top_left], axis=-1)


def area(boxes_xyxy: jax.Array) -> jax.Array:
    """Areas [...] of boxes [..., 4] in corner format."""
    return (boxes_xyxy[..., 2] - boxes_xyxy[..., 0]) * (boxes_xyxy[..., 3] - boxes_xyxy[..., 1])


def generalized_iou(a_xyxy: jax.Array, b_xyxy: jax.Array) -> jax.Array:
    """Generalised intersection over union, IoU - (hull - union) / hull, in -1..1.

    The leading dimensions broadcast: ``[..., 4]`` with ``[..., 4]`` compares box by box, and
    ``[N, 1, 4]`` with ``[1, M, 4]`` compares every pair and gives ``[N, M]``.

    Boxes without area give finite values and finite gradients.

    Source: Rezatofighi et al., "Generalized Intersection over Union" (2019), algorithm 1;
    DETR, appendix A.2.
    """
    left_top = jnp.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    right_bottom = jnp.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = jnp.prod(jnp.maximum(right_bottom - left_top, 0), axis=-1)
    union = area(a_xyxy) + area(b_xyxy) - intersection

    hull_left_top = jnp.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    hull_right_bottom = jnp.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = jnp.prod(hull_right_bottom - hull_left_top, axis=-1)

    iou = intersection / jnp.maximum(union, _SMALLEST_AREA)
    return iou - (hull - union) / jnp.maximum(hull, _SMALLEST_AREA)
