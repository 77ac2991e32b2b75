"""The set loss (DETR, section 3.1, equation 2, and appendix A.2).

Dimensions: ``L`` decoder layers, ``B`` batch, ``Q`` object queries, ``T`` targets of an image (padded),
``C`` classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from detr_jax.boxes import cxcywh_to_xyxy, generalized_iou
from detr_jax.config import LossConfig
from detr_jax.matching import UNMATCHED, match, matching_cost
from detr_jax.structures import Outputs, Predictions, Targets


class Normalizers(NamedTuple):
    """What sums over a batch are divided by; known from the targets alone, before any matching."""

    boxes: jax.Array
    """[] float32, number of target boxes, at least 1."""
    matched: jax.Array
    """[] float32, number of targets that find a query, at least 1."""
    class_weight: jax.Array
    """[] float32, total class weight of all queries: 1 for each matched, eos_coefficient for the others."""


def normalizers(count: jax.Array, num_queries: int, config: LossConfig) -> Normalizers:
    """The `Normalizers` of a batch with ``count`` [B] boxes in its images."""
    matched = jnp.minimum(count, num_queries).sum().astype(jnp.float32)
    unmatched = count.shape[0] * num_queries - matched
    return Normalizers(
        jnp.maximum(count.sum().astype(jnp.float32), 1.0),
        jnp.maximum(matched, 1.0),
        jnp.maximum(matched + config.eos_coefficient * unmatched, 1e-6),
    )


def set_loss(
    outputs: Outputs | Predictions,
    targets: Targets,
    config: LossConfig,
    *,
    mesh: Mesh | None = None,
    norms: Normalizers | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Matches every decoder layer's predictions to the targets and scores them.

    For each layer ``class_weight * loss_ce + bbox_weight * loss_bbox + giou_weight * loss_giou``, summed over
    the last layer and, with ``config.auxiliary``, all layers before it:

    * loss_ce: cross-entropy of all queries, "no object" for those without a target and weighted down by
      ``eos_coefficient``, over the sum of the weights;
    * loss_bbox: L1 distance of matched boxes in normalised cxcywh, over the number of boxes of the batch;
    * loss_giou: 1 - GIoU of matched boxes, over the same.

    Args:
      outputs: logits [L, B, Q, C + 1] and boxes [L, B, Q, 4].
      targets: boxes [B, T, 4] cxcywh in 0..1, labels [B, T], count [B].
      mesh: the mesh over whose axis "data" the batch is sharded, if it is.
      norms: for a part of a larger batch, the `normalizers` of the whole.

    Returns:
      The loss [] and terms for the log, all [] float32: ``loss_ce``, ``loss_bbox``, ``loss_giou`` unweighted,
      and the same with ``_0``, ``_1`` ... for the layers before the last; ``cardinality_error``, the mean
      distance between the number of queries that see an object and the number of boxes; ``class_error``, the
      percentage of matched queries whose highest logit, "no object" included, is not their target's class;
      ``class_accuracy``, the percentage whose highest logit without "no object" is.
    """
    logits, boxes = outputs.logits, outputs.boxes
    if not config.auxiliary:
        logits, boxes = logits[-1:], boxes[-1:]
    layers, _, queries, _ = logits.shape
    norms = norms or normalizers(targets.count, queries, config)

    cost = matching_cost(logits, boxes, targets, config)
    matched_query = match(cost, targets.count, config.matcher, mesh)  # [L, B, T]
    is_matched = matched_query != UNMATCHED
    gather = jnp.where(is_matched, matched_query, 0)[..., None]

    loss_ce = _classification_loss(logits, targets.labels, matched_query, config, norms)

    wanted = targets.boxes[None]
    found = jnp.take_along_axis(boxes, gather, axis=2)  # [L, B, T, 4]
    l1 = jnp.abs(found - wanted).sum(axis=-1)
    giou = generalized_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(wanted))
    loss_bbox = jnp.where(is_matched, l1, 0.0).sum(axis=(1, 2)) / norms.boxes
    loss_giou = jnp.where(is_matched, 1.0 - giou, 0.0).sum(axis=(1, 2)) / norms.boxes

    per_layer = {"loss_ce": loss_ce, "loss_bbox": loss_bbox, "loss_giou": loss_giou}
    weights = {
        "loss_ce": config.class_weight,
        "loss_bbox": config.bbox_weight,
        "loss_giou": config.giou_weight,
    }
    loss = sum((weights[name] * values.sum() for name, values in per_layer.items()), jnp.zeros(()))

    terms = {name: values[-1] for name, values in per_layer.items()}
    for layer in range(layers - 1):
        terms |= {f"{name}_{layer}": values[layer] for name, values in per_layer.items()}
    terms |= _diagnostics(logits[-1], targets, gather[-1], is_matched[-1], norms)
    return loss, jax.lax.stop_gradient(terms)


def _classification_loss(
    logits: jax.Array, labels: jax.Array, matched_query: jax.Array, config: LossConfig, norms: Normalizers
) -> jax.Array:
    """Weighted cross-entropy [L] of logits [L, B, Q, C + 1], given the query [L, B, T] of each target."""
    layers, batch, queries, classes = logits.shape
    no_object = classes - 1
    slots = jnp.where(matched_query == UNMATCHED, queries, matched_query)  # past the end: dropped
    layer_index, image_index = jnp.ogrid[:layers, :batch]
    query_labels = jnp.full((layers, batch, queries), no_object, jnp.int32)
    query_labels = query_labels.at[layer_index[..., None], image_index[..., None], slots].set(
        jnp.broadcast_to(labels[None], slots.shape), mode="drop"
    )
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    nll = -jnp.take_along_axis(log_probabilities, query_labels[..., None], axis=-1)[..., 0]
    weights = jnp.where(query_labels == no_object, config.eos_coefficient, 1.0)
    return (weights * nll).sum(axis=(1, 2)) / norms.class_weight


def _diagnostics(
    logits: jax.Array, targets: Targets, gather: jax.Array, is_matched: jax.Array, norms: Normalizers
) -> dict[str, jax.Array]:
    """Quantities for the log of one layer: logits [B, Q, C + 1], gather [B, T, 1], is_matched [B, T]."""
    no_object = logits.shape[-1] - 1
    objects_seen = (logits.argmax(axis=-1) != no_object).sum(axis=1)
    matched_logits = jnp.take_along_axis(logits, gather, axis=1)  # [B, T, C + 1]
    right = matched_logits.argmax(axis=-1) == targets.labels
    right_among_objects = matched_logits[..., :-1].argmax(axis=-1) == targets.labels

    def percent(which: jax.Array) -> jax.Array:
        return 100.0 * (is_matched & which).sum(dtype=jnp.float32) / norms.matched

    return {
        "cardinality_error": jnp.abs(objects_seen - targets.count).mean(dtype=jnp.float32),
        "class_error": percent(~right),
        "class_accuracy": percent(right_among_objects),
    }
