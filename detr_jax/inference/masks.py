"""Masks of detections: the compiled steps that compute their logits, and what becomes of them on the host.

Dimensions: ``B`` batch, ``N`` detections of an image, ``n`` masks, ``rows, columns`` cells of a mask.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

from detr_jax.config import DetectorConfig
from detr_jax.masks import nearest_pixels, sample_logits
from detr_jax.models.detector import DetectorModule
from detr_jax.models.mask_head import MaskFeatures
from detr_jax.panoptic import Segments, panoptic_segments
from detr_jax.sharding import batch_sharding, replicated
from detr_jax.structures import Array, Detections


class MaskSteps:
    """Prediction in two compiled steps: first the boxes of all queries, then the masks of those that are wanted."""

    def __init__(self, graph: nnx.GraphDef, mesh: Mesh, param_shardings: Any = None):
        """Prepare the steps; the arguments are those of `detr_jax.inference.predict.create_predict_step`."""
        batch, full = batch_sharding(mesh), replicated(mesh)

        def merged(params: tuple[Any, ...]) -> DetectorModule:
            if param_shardings is not None:
                params = jax.lax.with_sharding_constraint(params, full)
            return nnx.merge(graph, *params)

        def detect(
            params: tuple[Any, ...], images: jax.Array, valid_sizes: jax.Array, original_sizes: jax.Array
        ) -> tuple[Detections, Array, MaskFeatures | None]:
            model = merged(params)
            outputs = model(model.normalize(images, valid_sizes), valid_sizes)
            queries = model.detected_queries(outputs)
            return model.detections(outputs, original_sizes), queries, outputs.mask_features

        def logits(params: tuple[Any, ...], features: MaskFeatures, queries: jax.Array) -> jax.Array:
            return merged(params).mask_logits(features, queries)

        where = param_shardings or full
        self._detect = jax.jit(detect, in_shardings=(where, batch, batch, batch), out_shardings=(full, full, batch))
        self._logits = jax.jit(logits, in_shardings=(where, batch, batch), out_shardings=full)

    def detect(
        self, params: tuple[Any, ...], images: ArrayLike, valid_sizes: ArrayLike, original_sizes: ArrayLike
    ) -> tuple[Detections, Array, MaskFeatures]:
        """The `Detections`, the query [B, N] of each, and what masks are computed from.

        The arguments are those of the step of `detr_jax.inference.predict.create_predict_step`.
        """
        found: tuple[Detections, Array, MaskFeatures] = self._detect(params, images, valid_sizes, original_sizes)
        return found

    def logits(self, params: tuple[Any, ...], features: MaskFeatures, queries: ArrayLike) -> Array:
        """The mask logits [B, n, rows, columns] of queries [B, n]."""
        found: Array = self._logits(params, features, queries)
        return found


@dataclass(frozen=True, eq=False)
class ImageMasks:
    """The masks of detections in one image. Sizes are (height, width) in pixels."""

    logits: np.ndarray
    """[n, rows, columns] float32, of the valid cells."""
    size: tuple[int, int]
    """The size of the image as the model saw it."""
    original_size: tuple[int, int]
    """The size of the image before any resizing, and of the masks."""

    @classmethod
    def of(cls, logits: np.ndarray, size: Any, original_size: Any, stride: int) -> "ImageMasks":
        """The masks of logits [n, rows, columns] that may have padding, with cells of ``stride`` pixels."""
        height, width = (int(side) for side in size)
        original_height, original_width = (int(side) for side in original_size)
        valid = logits[:, : -(-height // stride), : -(-width // stride)]
        return cls(valid, (height, width), (original_height, original_width))

    def __len__(self) -> int:
        return len(self.logits)

    def select(self, which: np.ndarray) -> "ImageMasks":
        """The masks of some detections."""
        return ImageMasks(self.logits[which], self.size, self.original_size)

    def bitmaps(self) -> Iterator[np.ndarray]:
        """Each mask in the original size, [height, width] bool: probabilities above a half, then the nearest pixel."""
        rows, columns = (nearest_pixels(*sides) for sides in zip(self.size, self.original_size, strict=True))
        for logits in self.logits:
            yield sample_logits(logits, self.size, rows, columns) > 0

    def segments(self, labels: np.ndarray, stuff_labels: Collection[int], mask_threshold: float = 0.0) -> Segments:
        """The segments of the image (`detr_jax.panoptic.panoptic_segments`), with all masks as candidates."""
        return panoptic_segments(
            self.logits, labels, stuff_labels, self.size, self.original_size, mask_threshold=mask_threshold
        )


def check_masks(config: DetectorConfig) -> None:
    """Check that a detector predicts masks.

    Raises:
      ValueError: it does not.
    """
    if config.mask_stride is None:
        raise ValueError(
            "This model predicts no masks, as it has no mask head: use a model with masks, such as an imported "
            "panoptic one, or train one (docs/masks.md)."
        )


def panoptic_candidates(scores: np.ndarray, queries: np.ndarray, threshold: float) -> np.ndarray:
    """The detections [k] int of an image that may become segments, in the order of their queries.

    They are the ones with a score above the threshold. Of several detections of one query, it is the best one.
    """
    chosen = np.flatnonzero(scores > threshold)
    chosen = chosen[np.lexsort((-scores[chosen], queries[chosen]))]
    _, first = np.unique(queries[chosen], return_index=True)
    found: np.ndarray = chosen[first]
    return found


def padded_number(number: int, block: int, most: int) -> int:
    """A number of masks to compute that is at least ``number``: a block, twice that, and so on, up to ``most``.

    Each number is compiled once.
    """
    size = block
    while size < number:
        size *= 2
    return min(size, most)
