"""`DetectorModule`: what a detector must be able to do."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float32, Int, UInt8

from detr_jax.config import DetectorConfig
from detr_jax.models.backbone import BackboneLevels
from detr_jax.models.feature_map import FeatureMap
from detr_jax.models.images import normalize_images
from detr_jax.models.mask_head import MaskFeatures, MaskHead
from detr_jax.postprocess import detections, top_detections, top_pairs
from detr_jax.structures import Array, Detections, Outputs, Targets


class DetectorModule(nnx.Module):
    """The base class of detectors. A subclass defines ``__call__``; training, prediction and export need no more.

    A subclass with a backbone sets ``self.backbone`` and calls `backbone_features`.
    """

    backbone: nnx.Module
    mask_head: MaskHead | None = None

    def __init__(self, config: DetectorConfig):
        self.mask_padding = config.mask_padding
        self.pixel_mean = config.pixel_mean
        self.pixel_std = config.pixel_std
        self.classification = config.classification
        self.max_detections = config.max_detections
        self.backbone_levels = BackboneLevels.of(config.backbone)

    def normalize(self, images: UInt8[Array, "B H W 3"], sizes: Int[Array, "B 2"]) -> Float32[Array, "B H W 3"]:
        """uint8 RGB images [B, H, W, 3] of valid sizes [B, 2] as this detector reads them (`normalize_images`)."""
        return normalize_images(images, sizes, self.pixel_mean, self.pixel_std)

    def backbone_features(self, images: Float32[Array, "B H W 3"], sizes: Int[Array, "B 2"]) -> tuple[FeatureMap, ...]:
        """The backbone's feature maps of images [B, H, W, 3] of valid sizes [B, 2], from fine to coarse.

        Raises:
          ConfigError: the backbone returned something else than its configuration promises.
        """
        features = self.backbone(images, sizes if self.mask_padding else None)
        return self.backbone_levels.checked(features, images)

    def __call__(
        self,
        images: Float32[Array, "B H W 3"],
        sizes: Int[Array, "B 2"],
        *,
        targets: Targets | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Outputs:
        """Detect objects.

        Args:
          images: [B, H, W, 3] float32, normalised (`normalize`), padded at the bottom and right.
          sizes: [B, 2] int32, valid (height, width) of each image in pixels.
          targets: the objects, in training only; detectors with denoising queries read them.
          rngs: with a "dropout" stream for training; None for inference.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, images, sizes, *, targets, rngs).")

    def detections(self, outputs: Outputs, original_sizes: Int[Array, "B 2"]) -> Detections:
        """Convert the predictions of the last layer to detections in pixels of the original images, sizes [B, 2]."""
        logits, boxes = outputs.logits[-1], outputs.boxes[-1]
        if self.classification == "sigmoid":
            return top_detections(logits, boxes, original_sizes, self.max_detections)
        return detections(logits, boxes, original_sizes)

    def mask_logits(self, features: MaskFeatures, queries: Int[Array, "B K"]) -> Float32[Array, "B K rows columns"]:
        """The mask logits of some queries, at the stride ``config.mask_stride``. Values at padding have no meaning.

        Args:
          features: ``outputs.mask_features``.
          queries: [B, K] int, indices of the queries.

        Raises:
          ValueError: the detector predicts no masks.
        """
        return self.required_mask_head(features, queries)

    @property
    def required_mask_head(self) -> MaskHead:
        """The mask head.

        Raises:
          ValueError: the detector predicts no masks.
        """
        if self.mask_head is None:
            raise ValueError(
                f"The detector {type(self).__name__} predicts no masks: it needs a mask head (model.masks)."
            )
        return self.mask_head

    def detected_queries(self, outputs: Outputs) -> Int[Array, "B N"]:
        """The query [B, N] of each of the detections of `detections`, in the same order."""
        logits = outputs.logits[-1]
        if self.classification == "sigmoid":
            return top_pairs(logits, self.max_detections)[1]
        return jnp.broadcast_to(jnp.arange(logits.shape[1])[None], logits.shape[:2])


def abstract_model(config: DetectorConfig) -> tuple[nnx.GraphDef, Any]:
    """The graph of a detector and its pure tree of abstract arrays. Nothing is computed."""
    graph, state = nnx.split(nnx.eval_shape(lambda: config.build(rngs=nnx.Rngs(0))))
    return graph, nnx.as_pure(state)
