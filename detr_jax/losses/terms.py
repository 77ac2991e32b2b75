"""The terms of DETR's loss (section 3.1, equation 2, and appendix A.2). Each returns [L] float32."""

import jax
import jax.numpy as jnp

from detr_jax.boxes import cxcywh_to_xyxy, generalized_iou
from detr_jax.losses.matched import Matched


def cross_entropy(matched: Matched, no_object: float) -> jax.Array:
    """Cross-entropy of all queries, divided by the sum of their weights.

    Args:
      no_object: the weight of queries without a target. Queries with one have the weight 1.
    """
    labels, queries = matched.query_labels, matched.num_images * matched.num_queries
    log_probabilities = jax.nn.log_softmax(matched.predictions.logits, axis=-1)
    nll = -jnp.take_along_axis(log_probabilities, labels[..., None], axis=-1)[..., 0]
    weights = jnp.where(labels == matched.num_classes, no_object, 1.0)
    total = jnp.maximum(matched.num_matched + no_object * (queries - matched.num_matched), 1e-6)
    return (weights * nll).sum(axis=(1, 2)) / total


def l1(matched: Matched) -> jax.Array:
    """L1 distance of matched boxes in normalised cxcywh, divided by the number of boxes."""
    distance = jnp.abs(matched.matched_boxes - matched.targets.boxes[None]).sum(axis=-1)
    return jnp.where(matched.is_matched, distance, 0.0).sum(axis=(1, 2)) / matched.num_boxes


def giou(matched: Matched) -> jax.Array:
    """1 - generalised IoU of matched boxes, divided by the number of boxes."""
    found, wanted = cxcywh_to_xyxy(matched.matched_boxes), cxcywh_to_xyxy(matched.targets.boxes[None])
    loss = 1.0 - generalized_iou(found, wanted)
    return jnp.where(matched.is_matched, loss, 0.0).sum(axis=(1, 2)) / matched.num_boxes
