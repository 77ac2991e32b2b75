"""`DeformableDetector`: what Deformable DETR and DINO have in common."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float32, Int

from detr_jax.config import DeformableTransformerConfig
from detr_jax.models.deformable_transformer import DeformableEncoder
from detr_jax.models.detector import DetectorModule
from detr_jax.models.feature_map import FeatureMap
from detr_jax.models.pyramid import FeaturePyramid, Tokens
from detr_jax.models.sampling_points import SamplingPoints, sampling_points
from detr_jax.structures import Array

NEVER = -1e4
"""A logit whose sigmoid is exactly 0 in float32, with a focal loss of 0 for "no object"."""


class DeformableDetector(DetectorModule):
    """A detector with a backbone, a feature pyramid and a deformable encoder."""

    def __init__(self, config: DeformableTransformerConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        dtype = jnp.dtype(config.dtype)
        self.num_queries = config.num_queries
        self.backbone = config.backbone.build(dtype=dtype, remat=config.remat in ("backbone", "all"), rngs=rngs)
        self.pyramid = FeaturePyramid(config, rngs=rngs)
        self.encoder = DeformableEncoder(config, rngs=rngs)

    def tokens(self, images: Float32[Array, "B H W 3"], sizes: Int[Array, "B 2"]) -> Tokens:
        """The tokens of images [B, H, W, 3] with valid sizes [B, 2], from the backbone and the feature pyramid."""
        return self.tokens_of(self.backbone_features(images, sizes), images, sizes)

    def tokens_of(
        self, features: tuple[FeatureMap, ...], images: Float32[Array, "B H W 3"], sizes: Int[Array, "B 2"]
    ) -> Tokens:
        """The tokens of the backbone's features of images [B, H, W, 3] with valid sizes [B, 2]."""
        return self.pyramid(features, sizes, (images.shape[1], images.shape[2]))

    def candidates(
        self, logits: Float32[Array, "B S C"], box_logits: Float32[Array, "B S 4"], tokens: Tokens
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The proposals of all tokens, from which the best ones are chosen.

        Args:
          logits: [B, S, C].
          box_logits: [B, S, 4].
          tokens: where they are.

        Returns:
          Logits [B, N, C] and box logits [B, N, 4] of at least ``num_queries`` candidates, and a mask [B, N] of those
          that are none, whose logits are `NEVER`: padding (unless ``config.mask_padding`` is False), and the missing
          ones of a small image.
        """
        absent = jnp.zeros_like(tokens.padding_mask)
        if self.mask_padding:  # in the original, padding proposes a box too
            absent = tokens.padding_mask
            logits = jnp.where(absent[..., None], NEVER, logits)
        if (missing := self.num_queries - logits.shape[1]) > 0:
            logits = jnp.pad(logits, [(0, 0), (0, missing), (0, 0)], constant_values=NEVER)
            box_logits = jnp.pad(box_logits, [(0, 0), (0, missing), (0, 0)])
            absent = jnp.pad(absent, [(0, 0), (0, missing)], constant_values=True)
        return logits, box_logits, absent

    def sampling_points(
        self, images: Float32[Array, "B H W 3"], sizes: Int[Array, "B 2"], *, layer: int = -1
    ) -> SamplingPoints:
        """The outputs with the points that one decoder layer samples (`detr_jax.models.sampling_points`)."""
        return sampling_points(self, images, sizes, layer=layer)
