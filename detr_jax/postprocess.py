"""Conversion of predictions to detections in pixels (DETR, appendix A.4), without NMS and without a threshold."""

import jax
import jax.numpy as jnp

from detr_jax.boxes import cxcywh_to_xyxy
from detr_jax.structures import Detections


def detections(
    logits: jax.Array, boxes: jax.Array, original_sizes: jax.Array, classification: str = "softmax"
) -> Detections:
    """The detections of one decoder layer, one per query: its most probable class, "no object" excluded, and its box.

    Args:
      logits: [B, Q, C + 1] float32, or [B, Q, C] with "sigmoid".
      boxes: [B, Q, 4] float32, cxcywh in 0..1 of the unpadded image.
      original_sizes: [B, 2] int, (height, width) in pixels of each image before any resizing.
      classification: what the logits mean: "softmax" (with "no object" as the last class) or "sigmoid".
    """
    is_sigmoid = classification == "sigmoid"
    probabilities = jax.nn.sigmoid(logits) if is_sigmoid else jax.nn.softmax(logits, axis=-1)[..., :-1]
    height, width = original_sizes.astype(jnp.float32).T
    scale = jnp.stack([width, height, width, height], axis=-1)
    return Detections(
        cxcywh_to_xyxy(boxes) * scale[:, None],
        probabilities.max(axis=-1),
        probabilities.argmax(axis=-1).astype(jnp.int32),
    )
