"""The losses of masks (DETR, section 3.4 and appendix A.5).

Dimensions: ``B`` images, ``T`` targets of an image, ``k`` masks of a block, ``H, W`` pixels of the bucket.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float32, Int, UInt8

from detr_jax.config import MaskTerm
from detr_jax.losses.focal import binary_focal_loss
from detr_jax.losses.matched import Matched
from detr_jax.masks import ROWS_PER_BYTE, unpack_on_device, upsample
from detr_jax.models.detector import DetectorModule
from detr_jax.models.feature_map import valid_cells
from detr_jax.models.mask_head import MaskFeatures
from detr_jax.returned import check_shape
from detr_jax.structures import Array


@dataclass(frozen=True, eq=False)
class MatchedMasks:
    """Predicted masks and the masks of their targets, in pixels of the bucket: what a mask term reads."""

    logits: Float32[Array, "B k H W"]
    """[B, k, H, W] float32."""
    targets: Bool[Array, "B k H W"]
    """[B, k, H, W] bool."""
    inside: Bool[Array, "B 1 H W"]
    """[B, 1, H, W] bool, the pixels that count: those of the image. With ``model.mask_padding=False`` all count, as in
    the original."""

    def mean(self, values: Float32[Array, "B k H W"]) -> Float32[Array, "B k"]:
        """The mean over the pixels that count."""
        return self.sum(values) / self.inside.sum(axis=(2, 3)).astype(jnp.float32)

    def sum(self, values: Float32[Array, "B k H W"]) -> Float32[Array, "B k"]:
        """The sum over the pixels that count."""
        return jnp.where(self.inside, values, 0.0).sum(axis=(2, 3))


def mask_focal(masks: MatchedMasks, alpha: float | jax.Array, gamma: float | jax.Array) -> Float32[Array, "B k"]:
    """The focal loss of each mask, mean of its pixels (Lin et al., 2017)."""
    return masks.mean(binary_focal_loss(masks.logits, masks.targets, alpha, gamma))


def mask_dice(masks: MatchedMasks) -> Float32[Array, "B k"]:
    """The dice loss of each mask (Milletari et al., 2016), with 1 added to both sides of the fraction."""
    probabilities = jax.nn.sigmoid(masks.logits)
    targets = masks.targets.astype(jnp.float32)
    both, total = masks.sum(probabilities * targets), masks.sum(probabilities + targets)
    return 1.0 - (2.0 * both + 1.0) / (total + 1.0)


def mask_losses(
    terms: Mapping[str, MaskTerm],
    matched: Matched,
    detector: DetectorModule,
    features: MaskFeatures,
    sizes: Int[Array, "B 2"],
) -> dict[str, Float32[Array, ""]]:
    """The mask terms of one layer by name, without their weights.

    Only the masks of matched queries are computed, a block at a time. The backward pass computes each block again.

    Args:
      terms: by name.
      matched: of the last layer, with masks among its targets.
      detector: computes the mask logits.
      features: ``outputs.mask_features``.
      sizes: [B, 2] int, valid (height, width) of each image in pixels.
    """
    bits = matched.targets.masks
    assert bits is not None
    bucket = bits.shape[2] * ROWS_PER_BYTE, bits.shape[3]
    is_matched = matched.is_matched[-1]
    queries = jnp.where(is_matched, matched.matched_query[-1], 0)
    cells = features.levels[0].valid_sizes
    if not detector.mask_padding or cells is None:
        cells = _repeated(features.levels[0].values.shape[1:3], sizes)
        sizes = _repeated(bucket, sizes)
    inside = valid_cells(sizes, *bucket)[:, None]

    def of_block(logits: jax.Array, bits: UInt8[Array, "B k byte_rows W"]) -> dict[str, jax.Array]:
        masks = MatchedMasks(upsample(logits, bucket, cells, sizes), unpack_on_device(bits), inside)
        return {name: _computed(name, term, masks) for name, term in terms.items()}

    head = detector.required_mask_head
    values = head.map(features, queries, bits, of_block, count=matched.targets.count, recompute=True)
    return {name: jnp.where(is_matched, value, 0.0).sum() / matched.num_boxes for name, value in values.items()}


def _computed(name: str, term: MaskTerm, masks: MatchedMasks) -> jax.Array:
    """The values of a term, checked to be [B, k]."""
    value = term.compute_masks(masks)
    check_shape(value, masks.logits.shape[:2], f"loss.terms.{name}", term, "B, k")
    return value


def _repeated(size: Any, sizes: Int[Array, "B 2"]) -> jax.Array:
    """The same (height, width) for every image, [B, 2]."""
    return jnp.broadcast_to(jnp.stack([jnp.asarray(side, jnp.int32) for side in size])[None], sizes.shape)
