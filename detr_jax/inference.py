"""The compiled prediction step."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from detr_jax.models.resnet import normalize_images
from detr_jax.postprocess import Detections, detections
from detr_jax.sharding import replicated, shared_out

PredictStep = Callable[[tuple[Any, ...], jax.Array, jax.Array, jax.Array], Detections]


def create_predict_step(graph: nnx.GraphDef, mesh: Mesh) -> PredictStep:
    """Builds ``predict(values, images, sizes, original_sizes) -> Detections``, with the batch over the mesh.

    Args of the step:
      values: the model's pure trees, one or several, that `nnx.merge` puts together with ``graph``.
      images: [B, H, W, 3] uint8, padded at the bottom and right.
      sizes: [B, 2] int32, valid (height, width) in pixels.
      original_sizes: [B, 2] int32, (height, width) in pixels before any resizing, which the boxes refer to.
    """

    def predict(values: tuple[Any, ...], images: jax.Array, sizes: jax.Array, original_sizes: jax.Array) -> Detections:
        predictions = nnx.merge(graph, *values)(normalize_images(images, sizes), sizes)
        return detections(predictions.logits[-1], predictions.boxes[-1], original_sizes)

    batch = shared_out(mesh)
    return jax.jit(predict, in_shardings=(replicated(mesh), batch, batch, batch), out_shardings=replicated(mesh))
