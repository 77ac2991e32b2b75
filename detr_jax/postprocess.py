"""Conversion of predictions to detections in pixels, without NMS and without a threshold."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float32, Int, Int32

from detr_jax.boxes import cxcywh_to_xyxy
from detr_jax.structures import Array, Detections


def detections(
    logits: Float32[Array, "B Q outputs"], boxes: Float32[Array, "B Q 4"], original_sizes: Int[Array, "B 2"]
) -> Detections:
    """One detection per query of a decoder layer: its most probable class, "no object" excluded, and its box.

    Args:
      logits: [B, Q, C + 1] float32, for a softmax with "no object" as the last class.
      boxes: [B, Q, 4] float32, cxcywh in 0..1 of the unpadded image.
      original_sizes: [B, 2] int, (height, width) in pixels of each image before any resizing.

    Source: DETR, appendix A.4.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)[..., :-1]
    return Detections(
        _in_pixels(boxes, original_sizes),
        probabilities.max(axis=-1),
        probabilities.argmax(axis=-1).astype(jnp.int32),
    )


def top_detections(
    logits: Float32[Array, "B Q C"],
    boxes: Float32[Array, "B Q 4"],
    original_sizes: Int[Array, "B 2"],
    number: int,
) -> Detections:
    """The most probable pairs of a query and a class of a decoder layer. A query can give several detections.

    Args:
      logits: [B, Q, C] float32, for a sigmoid.
      boxes: [B, Q, 4] float32, cxcywh in 0..1 of the unpadded image.
      original_sizes: [B, 2] int, (height, width) in pixels of each image before any resizing.
      number: N, detections per image; Q * C if there are fewer pairs.

    Source: Deformable DETR, appendix A.4.
    """
    best, query, label = top_pairs(logits, number)
    detected = jnp.take_along_axis(boxes, query[..., None], axis=1)
    return Detections(_in_pixels(detected, original_sizes), jax.nn.sigmoid(best), label)


def top_pairs(
    logits: Float32[Array, "B Q C"], number: int
) -> tuple[Float32[Array, "B N"], Int32[Array, "B N"], Int32[Array, "B N"]]:
    """Logit, query and label, each [B, N], of the most probable pairs of a query and a class, the best one first."""
    _, queries, classes = logits.shape
    best, chosen = lax.top_k(logits.reshape(-1, queries * classes), min(number, queries * classes))
    query, label = jnp.divmod(chosen, classes)
    return best, query.astype(jnp.int32), label.astype(jnp.int32)


def _in_pixels(boxes: Float32[Array, "B N 4"], original_sizes: Int[Array, "B 2"]) -> Float32[Array, "B N 4"]:
    """Boxes cxcywh in 0..1 as xyxy in pixels of the original images; not clipped to them."""
    height, width = original_sizes.astype(jnp.float32).T
    scale = jnp.stack([width, height, width, height], axis=-1)
    return cxcywh_to_xyxy(boxes) * scale[:, None]
