"""Prediction together with attention maps, for detectors that have them."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from detr_jax.models.detector import DetectorModule
from detr_jax.structures import Detections

AttentionStep = Callable[..., tuple[Detections, jax.Array, jax.Array | None]]


class AttentionError(ValueError):
    """The detector has no attention maps; the message names its class."""


def create_attention_step(model: DetectorModule) -> AttentionStep:
    """Compiles the prediction of one image with the attention weights of the last layers.

    The step is ``step(params, images, valid_sizes, original_sizes)``. Its arguments are those of
    `detr_jax.inference.predict.predict` for a batch of one image, with the parameters of the model as one pure tree. It
    returns the `Detections` without the batch dimension, the decoder's weights [Q, h, w], and the encoder's weights
    [h, w, h, w] or None. The weights are means over the heads.

    Raises:
      AttentionError: the detector has no method ``attention_maps``.
    """
    if not hasattr(model, "attention_maps"):
        raise AttentionError(
            f"The detector {type(model).__name__} has no attention maps: attention needs a detector with a method "
            "attention_maps, such as DETR."
        )
    graph, _ = nnx.split(model)

    def step(params: Any, images: jax.Array, valid_sizes: jax.Array, original_sizes: jax.Array) -> Any:
        merged: Any = nnx.merge(graph, params)
        maps = merged.attention_maps(merged.normalize(images, valid_sizes), valid_sizes)
        found = merged.detections(maps.outputs, original_sizes)
        encoder = None if maps.encoder is None else maps.encoder[0].mean(axis=0)
        return jax.tree.map(lambda x: x[0], found), maps.decoder[0].mean(axis=0), encoder

    return jax.jit(step)
