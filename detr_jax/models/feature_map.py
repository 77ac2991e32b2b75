"""`FeatureMap`: one level of a backbone, with what is valid in it."""

import dataclasses

import jax
import jax.numpy as jnp

from detr_jax.structures import structure


@structure
class FeatureMap:
    """Features of a batch of padded images at one resolution. Dimensions: ``h, w`` cells, ``C`` channels."""

    values: jax.Array
    """[B, h, w, C], in the type that the backbone computes in."""
    valid_sizes: jax.Array | None
    """[B, 2] int, (height, width) in cells of each image inside its bucket; None if padding is part of the image."""
    stride: int = dataclasses.field(metadata={"static": True})
    """Pixels of the image per cell."""

    def padding_mask(self) -> jax.Array | None:
        """[B, h, w] bool, True at padding; None if padding is part of the image."""
        if self.valid_sizes is None:
            return None
        return ~valid_cells(self.valid_sizes, *self.values.shape[1:3])


def valid_cells(valid_sizes: jax.Array, height: int, width: int) -> jax.Array:
    """Mask [B, height, width] bool, True inside the valid sizes [B, 2] (height, width) of each image."""
    rows = jnp.arange(height)[None, :, None] < valid_sizes[:, 0, None, None]
    columns = jnp.arange(width)[None, None, :] < valid_sizes[:, 1, None, None]
    return rows & columns


def clear_padding(x: jax.Array, sizes: jax.Array | None) -> jax.Array:
    """Set x [B, H, W, C] to zero outside of the valid sizes [B, 2] in cells; with None, x stays as it is."""
    if sizes is None:
        return x
    return jnp.where(valid_cells(sizes, *x.shape[1:3])[..., None], x, jnp.zeros((), x.dtype))
