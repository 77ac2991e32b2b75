"""The sigmoid focal loss (Lin et al., "Focal Loss for Dense Object Detection", 2017, section 3.2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from detr_jax.losses.matched import Matched
from detr_jax.structures import Array


def focal_loss(matched: Matched, alpha: float | jax.Array, gamma: float | jax.Array) -> Float32[Array, " L"]:
    """Sum over all queries and classes, divided by the number of boxes (Deformable DETR, section 4.1). [L] float32."""
    logits = matched.predictions.logits
    is_target = jax.nn.one_hot(matched.query_labels, matched.num_classes, dtype=bool)  # none for "no object"
    loss = binary_focal_loss(logits, is_target, alpha, gamma)
    return loss.sum(axis=(1, 2, 3)) / matched.num_boxes


def binary_focal_loss(logits: Array, is_target: Array, alpha: float | jax.Array, gamma: float | jax.Array) -> jax.Array:
    """``-weight * (1 - p)^gamma * log(p)`` element by element.

    Here p is the probability of the right answer, and the weight is ``alpha`` for targets and ``1 - alpha`` otherwise.

    Args:
      logits: [...] float32.
      is_target: bool that broadcasts to [...].
    """
    signed = jnp.where(is_target, logits, -logits)
    weight = jnp.where(is_target, alpha, 1.0 - alpha)
    return -weight * jax.nn.sigmoid(-signed) ** gamma * jax.nn.log_sigmoid(signed)
