"""Prediction together with what the queries look at, for detectors that can tell."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from detr_jax.models.detector import DetectorModule
from detr_jax.structures import Detections

AttentionStep = Callable[..., tuple[Detections, Any, Any]]


class AttentionError(ValueError):
    """The detector has neither attention maps nor sampling points; the message names its class."""


def create_attention_step(model: DetectorModule) -> AttentionStep:
    """Compiles the prediction of one image with what the query of each detection looks at in the last decoder layer.

    The step is ``step(params, images, valid_sizes, original_sizes)``. Its arguments are those of
    `detr_jax.inference.predict.predict` for a batch of one image, with the parameters of the model as one pure tree. It
    returns the `Detections` without the batch dimension, and

    * for a detector with attention maps, the decoder's weights [N, h, w], and the encoder's weights [h, w, h, w] or
      None. The weights are means over the heads.
    * for a detector with sampling points, a tuple of their places [N, A, M, P, 2] in 0..1 of the image and their
      weights [N, A, M, P], and None.

    Raises:
      AttentionError: the detector has neither a method ``attention_maps`` nor a method ``sampling_points``.
    """
    look: Callable[..., Any]
    if hasattr(model, "attention_maps"):
        look = _attention_maps
    elif hasattr(model, "sampling_points"):
        look = _sampling_points
    else:
        raise AttentionError(
            f"The detector {type(model).__name__} has no attention maps: attention needs a detector with a method "
            "attention_maps, such as DETR, or sampling_points, such as DeformableDETR."
        )
    graph, _ = nnx.split(model)

    def step(params: Any, images: jax.Array, valid_sizes: jax.Array, original_sizes: jax.Array) -> Any:
        merged: Any = nnx.merge(graph, params)
        outputs, of_queries, of_cells = look(merged, merged.normalize(images, valid_sizes), valid_sizes)
        found = merged.detections(outputs, original_sizes)
        query = merged.detected_queries(outputs)[0]
        return jax.tree.map(lambda x: x[0], found), jax.tree.map(lambda x: x[query], of_queries), of_cells

    return jax.jit(step)


def _attention_maps(model: Any, images: jax.Array, valid_sizes: jax.Array) -> tuple[Any, jax.Array, jax.Array | None]:
    maps = model.attention_maps(images, valid_sizes)
    encoder = None if maps.encoder is None else maps.encoder[0].mean(axis=0)
    return maps.outputs, maps.decoder[0].mean(axis=0), encoder


def _sampling_points(model: Any, images: jax.Array, valid_sizes: jax.Array) -> tuple[Any, Any, None]:
    points = model.sampling_points(images, valid_sizes)
    return points.outputs, (points.places[0], points.weights[0]), None
