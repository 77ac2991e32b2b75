"""Position embeddings of the feature map (DETR, section 3.2 and appendix A.4)."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float32

from detr_jax.config import LEARNED_CELLS
from detr_jax.models.initializers import Initializer
from detr_jax.structures import Array


def sine_position_embedding(
    padding_mask: Bool[Array, "B h w"], dim: int, temperature: float = 10_000.0, offset: float = 0.0
) -> Float32[Array, "B h w dim"]:
    """The fixed sine embedding of every cell's position in the valid region.

    The first half of the channels encodes y, the second half x. Along an axis, the position p of the n-th of N valid
    cells is 2 pi (n + offset) / N, and n starts at 1. Channel i of a half is sin(f p) if i is even, and cos(f p) if i
    is odd. The frequency f is ``temperature ** -(2 * floor(i / 2) / (dim / 2))``.

    Args:
      padding_mask: [B, H, W] bool, True for padding.
      dim: channels of the embedding, a multiple of 4.
      temperature: the base of the frequencies.
      offset: 0 in DETR; -0.5, the centre of the cell, in Deformable DETR.

    Returns:
      [B, H, W, dim] float32.

    Source: Parmar et al., "Image Transformer" (2018); DETR, appendix A.4.
    """
    valid = (~padding_mask).astype(jnp.float32)
    half = dim // 2
    frequencies = _frequencies(half, temperature)

    def embed(axis: int) -> jax.Array:
        count = jnp.cumsum(valid, axis=axis)
        total = jnp.max(count, axis=axis, keepdims=True)
        angle = ((count + offset) / (total + 1e-6) * (2 * np.pi))[..., None] * frequencies[None, None, None]
        return _interleaved(angle)

    return jnp.concatenate([embed(axis=1), embed(axis=2)], axis=-1)


def coordinate_embedding(
    coordinates: Float32[Array, "*N n"], dim: int, temperature: float = 10_000.0
) -> Float32[Array, "*N n_dim"]:
    """The sine embedding of numbers in 0..1, such as the four numbers of a box.

    Args:
      coordinates: [..., n] float32.
      dim: channels of each number, even.
      temperature: the base of the frequencies.

    Returns:
      [..., n * dim] float32, number by number, with the channels of `sine_position_embedding`.

    Source: Deformable DETR, appendix A.4.
    """
    angle = (coordinates * (2 * np.pi))[..., None]
    angle = angle * _frequencies(dim, temperature).reshape(*[1] * coordinates.ndim, dim)
    return _interleaved(angle).reshape(*coordinates.shape[:-1], -1)


def _frequencies(dim: int, temperature: float) -> jax.Array:
    """[dim] float32, equal in pairs."""
    return jnp.asarray(temperature ** -(2 * (np.arange(dim) // 2) / dim), jnp.float32)


def _interleaved(angle: Float32[Array, "*N dim"]) -> Float32[Array, "*N dim"]:
    """The sine of even channels and the cosine of odd ones."""
    even, odd = jnp.sin(angle[..., 0::2]), jnp.cos(angle[..., 1::2])
    return jnp.stack([even, odd], axis=-1).reshape(angle.shape)


class SinePositionEmbedding(nnx.Module):
    """`sine_position_embedding` as a module with a fixed number of channels."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.dim = dim

    def __call__(self, padding_mask: Array) -> jax.Array:
        """The embedding [B, H, W, dim] float32 of the cells of ``padding_mask`` [B, H, W]."""
        return sine_position_embedding(padding_mask, self.dim)


class LearnedPositionEmbedding(nnx.Module):
    """One learned vector per column and one per row. The first half of the channels encodes x, the second half y."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        init: Initializer = nnx.initializers.uniform(scale=1.0)
        shape = (LEARNED_CELLS, dim // 2)
        self.columns = nnx.Param(init(rngs.params(), shape))
        self.rows = nnx.Param(init(rngs.params(), shape))

    def __call__(self, padding_mask: Array) -> jax.Array:
        """The embedding [B, H, W, dim] float32 of a feature map. Only the shape of ``padding_mask`` [B, H, W] matters.

        Raises:
          ValueError: the feature map has more rows or columns than there are learned vectors.
        """
        batch, height, width = padding_mask.shape
        if max(height, width) > LEARNED_CELLS:
            raise ValueError(
                f"Learned position embeddings hold {LEARNED_CELLS} x {LEARNED_CELLS} cells, but the feature map has "
                f"{height} x {width}: use smaller images or model.position_embedding='sine'."
            )
        x = jnp.broadcast_to(self.columns[...][None, :width], (height, width, self.columns.shape[1]))
        y = jnp.broadcast_to(self.rows[...][:height, None], (height, width, self.rows.shape[1]))
        embedding = jnp.concatenate([x, y], axis=-1)
        return jnp.broadcast_to(embedding[None], (batch, *embedding.shape))
