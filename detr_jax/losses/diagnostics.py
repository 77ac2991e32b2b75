"""Quantities for the log that have no gradient. Each returns [L] float32."""

import jax
import jax.numpy as jnp

from detr_jax.losses.matched import Matched


def cardinality_error(matched: Matched) -> jax.Array:
    """The mean difference between the number of queries that predict an object and the number of boxes.

    A query predicts an object if "no object" is not its highest output or, with "sigmoid", if a probability is above a
    half.
    """
    logits = matched.predictions.logits
    predicted = logits.argmax(axis=-1) != matched.num_classes
    if matched.classification == "sigmoid":
        predicted = logits.max(axis=-1) > 0
    error = jnp.abs(predicted.sum(axis=2) - matched.targets.count[None])
    return error.sum(axis=1, dtype=jnp.float32) / matched.num_images


def class_error(matched: Matched) -> jax.Array:
    """The percentage of matched queries whose highest output, "no object" included, is not their target's class."""
    return _percentage(matched, matched.matched_logits.argmax(axis=-1) != matched.targets.labels[None])


def class_accuracy(matched: Matched) -> jax.Array:
    """The percentage of matched queries whose highest output, "no object" excluded, is their target's class."""
    classes = matched.matched_logits[..., : matched.num_classes]
    return _percentage(matched, classes.argmax(axis=-1) == matched.targets.labels[None])


def _percentage(matched: Matched, which: jax.Array) -> jax.Array:
    """The percentage of matched targets that ``which`` [L, B, T] is true for."""
    number = (matched.is_matched & which).sum(axis=(1, 2), dtype=jnp.float32)
    return 100.0 * number / jnp.maximum(matched.num_matched, 1.0)
