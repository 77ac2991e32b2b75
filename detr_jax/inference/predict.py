"""Prediction with any detector: from uint8 images to detections in pixels.

Dimensions: ``B`` batch; ``H, W`` height and width of the bucket in pixels.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

from detr_jax.checkpoints import CheckpointError
from detr_jax.models.detector import DetectorModule
from detr_jax.sharding import batch_sharding, replicated
from detr_jax.structures import Detections

PredictStep = Callable[[tuple[Any, ...], ArrayLike, ArrayLike, ArrayLike], Detections]


def predict(model: DetectorModule, images: jax.Array, valid_sizes: jax.Array, original_sizes: jax.Array) -> Detections:
    """Detects objects in a batch of images.

    Args:
      model: the detector.
      images: [B, H, W, 3] uint8, RGB, padded at the bottom and right.
      valid_sizes: [B, 2] int32, (height, width) in pixels of the image inside its bucket.
      original_sizes: [B, 2] int32, (height, width) in pixels before any resizing. The boxes refer to this size.
    """
    outputs = model(model.normalize(images, valid_sizes), valid_sizes)
    return model.detections(outputs, original_sizes)


def predict_masks(
    model: DetectorModule, images: jax.Array, valid_sizes: jax.Array, original_sizes: jax.Array
) -> tuple[Detections, jax.Array]:
    """Detects objects in a batch of images, with the mask logits [B, N, rows, columns] of all N detections.

    The arguments are those of `predict`. A cell of a mask has ``config.mask_stride`` pixels of the bucket.
    """
    outputs = model(model.normalize(images, valid_sizes), valid_sizes)
    assert outputs.mask_features is not None, "the detector predicts no masks"
    logits = model.mask_logits(outputs.mask_features, model.detected_queries(outputs))
    return model.detections(outputs, original_sizes), logits


def create_predict_step(graph: nnx.GraphDef, mesh: Mesh, param_shardings: Any = None) -> PredictStep:
    """Compiles `predict` for a mesh, with the batch sharded over its devices.

    The step is ``step(params, images, valid_sizes, original_sizes) -> Detections``. Its ``params`` are one or several
    pure trees that `nnx.merge` joins with ``graph``. The other arguments are those of `predict`. Every device holds the
    whole result.

    Args:
      graph: the structure of the detector.
      mesh: the devices.
      param_shardings: the sharding of ``params``, one for all, or one for each tree or array. By default, the params
        are replicated.
    """
    batch, full = batch_sharding(mesh), replicated(mesh)

    def step(
        params: tuple[Any, ...], images: jax.Array, valid_sizes: jax.Array, original_sizes: jax.Array
    ) -> Detections:
        if param_shardings is not None:
            params = jax.lax.with_sharding_constraint(params, full)
        return predict(nnx.merge(graph, *params), images, valid_sizes, original_sizes)

    return jax.jit(step, in_shardings=(param_shardings or full, batch, batch, batch), out_shardings=full)


def check_scores(scores: np.ndarray) -> None:
    """Raises an error if the model is broken. Its detections would look like those of images without objects.

    Raises:
      CheckpointError: a score is not a finite number.
    """
    if not np.isfinite(scores).all():
        raise CheckpointError(
            "The model's scores are not finite numbers: its training diverged, or its file is damaged. Use an earlier "
            "checkpoint."
        )
