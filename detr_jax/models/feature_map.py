"""`FeatureMap`: one level of a backbone, with what is valid in it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Shaped

from detr_jax.structures import Array, structure


@structure
class FeatureMap:
    """Features of a batch of padded images at one resolution. Dimensions: ``h, w`` cells, ``C`` channels."""

    values: Float[Array, "B h w C"]
    """[B, h, w, C], in the type that the backbone computes in."""
    valid_sizes: Int[Array, "B 2"] | None
    """[B, 2] int, (height, width) in cells of each image inside its bucket; None if padding is part of the image."""
    stride: int = dataclasses.field(metadata={"static": True})
    """Pixels of the image per cell."""

    def padding_mask(self) -> Bool[Array, "B h w"] | None:
        """[B, h, w] bool, True at padding; None if padding is part of the image."""
        if self.valid_sizes is None:
            return None
        return ~valid_cells(self.valid_sizes, *self.values.shape[1:3])


def valid_cells(valid_sizes: Int[Array, "B 2"], height: Any, width: Any) -> Bool[Array, "B h w"]:
    """Mask [B, height, width] bool, True inside the valid sizes [B, 2] (height, width) of each image."""
    rows = jnp.arange(height)[None, :, None] < valid_sizes[:, 0, None, None]
    columns = jnp.arange(width)[None, None, :] < valid_sizes[:, 1, None, None]
    return rows & columns


def clear_padding(x: Shaped[Array, "B h w C"], sizes: Int[Array, "B 2"] | None) -> Shaped[Array, "B h w C"]:
    """Set x [B, H, W, C] to zero outside of the valid sizes [B, 2] in cells; with None, x stays as it is."""
    if sizes is None:
        return x
    return jnp.where(valid_cells(sizes, *x.shape[1:3])[..., None], x, jnp.zeros((), x.dtype))
