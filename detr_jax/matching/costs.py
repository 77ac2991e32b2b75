"""The costs of giving a target to a query (DETR, section 3.1, equation 1; Deformable DETR, appendix A.3).

Dimensions: ``L`` decoder layers, ``B`` batch, ``Q`` object queries, ``T`` targets of an image (padded), ``C`` classes.
"""

import functools
import operator
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float32, Int

from detr_jax.boxes import cxcywh_to_xyxy, generalized_iou
from detr_jax.config import MatchingCost
from detr_jax.returned import check_shape
from detr_jax.structures import Array, Predictions, Targets

Cost = Float32[Array, "L B Q T"]
"""A cost of each query of each layer for each target."""


def matching_cost(predictions: Predictions, targets: Targets, costs: Mapping[str, MatchingCost]) -> Cost:
    """The weighted sum of the costs of giving each target to each query, for all decoder layers at once.

    Args:
      predictions: logits [L, B, Q, C + 1 or C] and boxes [L, B, Q, 4] cxcywh in 0..1, float32.
      targets: boxes [B, T, 4] cxcywh in 0..1, labels [B, T], count [B].
      costs: entries of ``config.loss.costs``.

    Returns:
      [L, B, Q, T] float32. Columns from ``count`` on mean nothing. No gradient flows through it.

    Raises:
      ConfigError: a cost returned an array of another shape.
    """
    predictions = lax.stop_gradient(predictions)
    shape = (*predictions.logits.shape[:3], targets.labels.shape[1])
    weighted = []
    for name, cost in costs.items():
        value = cost.compute(predictions, targets)
        check_shape(value, shape, f"loss.costs.{name}", cost, "L, B, Q, T")
        weighted.append(cost.weight * value)
    return lax.stop_gradient(functools.reduce(operator.add, weighted))


def softmax_cost(predictions: Predictions, targets: Targets) -> Cost:
    """Minus the probability of the target's class [L, B, Q, T]; "no object" is among the classes of the softmax."""
    return -_of_labels(jax.nn.softmax(predictions.logits, axis=-1), targets.labels)


def focal_cost(predictions: Predictions, targets: Targets, alpha: float | jax.Array, gamma: float | jax.Array) -> Cost:
    """The focal loss of the target's class as a target minus the one as no target [L, B, Q, T]."""
    probability = _of_labels(jax.nn.sigmoid(predictions.logits), targets.labels)
    as_target = -alpha * (1 - probability) ** gamma * jnp.log(probability + 1e-8)
    as_other = -(1 - alpha) * probability**gamma * jnp.log(1 - probability + 1e-8)
    return as_target - as_other


def l1_cost(predictions: Predictions, targets: Targets) -> Cost:
    """L1 distance of the boxes in cxcywh [L, B, Q, T]."""
    predicted, wanted = _pairs(predictions, targets)
    return jnp.abs(predicted - wanted).sum(axis=-1)


def giou_cost(predictions: Predictions, targets: Targets) -> Cost:
    """Minus the generalised IoU of the boxes [L, B, Q, T]."""
    predicted, wanted = _pairs(predictions, targets)
    return -generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))


def _pairs(
    predictions: Predictions, targets: Targets
) -> tuple[Float32[Array, "L B Q 1 4"], Float32[Array, "1 B 1 T 4"]]:
    """Boxes [L, B, Q, 1, 4] of the queries and [1, B, 1, T, 4] of the targets."""
    return predictions.boxes[:, :, :, None], targets.boxes[None, :, None]


def _of_labels(values: Float32[Array, "L B Q K"], labels: Int[Array, "B T"]) -> Float32[Array, "L B Q T"]:
    """Values [L, B, Q, C + 1 or C] of the classes, for each target of labels [B, T]: [L, B, Q, T]."""
    index = jnp.broadcast_to(labels[None, :, None], (*values.shape[:3], labels.shape[1]))
    return jnp.take_along_axis(values, index, axis=-1)
