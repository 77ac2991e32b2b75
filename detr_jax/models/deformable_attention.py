"""Multi-scale deformable attention (Zhu et al., 2021, section 4.1)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32

from detr_jax.config import DeformableTransformerConfig
from detr_jax.models.initializers import xavier_uniform
from detr_jax.models.pyramid import Tokens
from detr_jax.models.sampling import sample_levels
from detr_jax.structures import Array


class DeformableAttention(nnx.Module):
    """Each head of a query reads a few points of every level. Their places and weights depend only on the query.

    Dimensions: ``B`` batch, ``N`` queries, ``S`` tokens, ``D`` model width, ``A`` heads, ``M`` levels, ``P`` points.
    """

    def __init__(
        self, config: DeformableTransformerConfig, *, dtype: jnp.dtype, value_dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        dim, heads, levels, points = config.hidden_dim, config.num_heads, config.num_levels, config.num_points
        zeros = nnx.initializers.zeros
        self.shape = (heads, levels, points)
        samples = math.prod(self.shape)

        def grid(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = "float32") -> jax.Array:
            return jnp.asarray(initial_offsets(*self.shape).reshape(shape), dtype)

        # float32 in every precision: bfloat16 would round an offset of 64 cells to half a cell
        exact = jnp.float32
        self.sampling_offsets = nnx.Linear(dim, 2 * samples, kernel_init=zeros, bias_init=grid, dtype=exact, rngs=rngs)
        self.attention_weights = nnx.Linear(dim, samples, kernel_init=zeros, dtype=exact, rngs=rngs)
        self.value = nnx.Linear(dim, dim, kernel_init=xavier_uniform(), dtype=value_dtype, rngs=rngs)
        self.output = nnx.Linear(dim, dim, kernel_init=xavier_uniform(), dtype=dtype, rngs=rngs)

    def __call__(
        self,
        queries: Float32[Array, "B N D"],
        reference: Float32[Array, "B N M R"],
        tokens: Tokens,
        values: Float32[Array, "B S D"],
    ) -> Float[Array, "B N D"]:
        """Attends from queries to values at the cells of ``tokens``.

        Args:
          queries: [B, N, D] float32, with their positions.
          reference: [B, N, M, 2] points (x, y), or [B, N, M, 4] boxes cxcywh, in 0..1 of the padded levels.
          tokens: where the cells are, and which are padding. Padding is read as 0.
          values: [B, S, D] float32.
        """
        projected = self.value(values)
        projected = jnp.where(tokens.padding_mask[..., None], jnp.zeros((), projected.dtype), projected)
        projected = projected.reshape(*projected.shape[:2], self.shape[0], -1)
        locations, weights = self.points(queries, reference, tokens)
        sampled = sample_levels(projected, tokens.shapes, locations, weights)
        return self.output(sampled.reshape(*queries.shape[:2], -1))

    def points(
        self, queries: Float32[Array, "B N D"], reference: Float32[Array, "B N M R"], tokens: Tokens
    ) -> tuple[Float32[Array, "B N A M P 2"], Float32[Array, "B N A M P"]]:
        """Where the queries look: locations (x, y) in 0..1 of the padded levels, and weights with the sum 1 per head.

        An offset counts cells from a reference point, or quarters of half a side from the centre of a reference box.
        """
        heads, levels, points = self.shape
        leading = queries.shape[:2]
        offsets = self.sampling_offsets(queries).reshape(*leading, heads, levels, points, 2)
        scores = self.attention_weights(queries).reshape(*leading, heads, levels * points)
        weights = jax.nn.softmax(scores, axis=-1).reshape(*leading, heads, levels, points)
        reference = reference[:, :, None, :, None]
        if reference.shape[-1] == 2:
            unit = 1.0 / jnp.asarray([shape[::-1] for shape in tokens.shapes], jnp.float32)[None, None, None, :, None]
        else:
            unit = reference[..., 2:] * (0.5 / points)
        return reference[..., :2] + offsets * unit, weights


def initial_offsets(heads: int, levels: int, points: int) -> np.ndarray:
    """[heads, levels, points, 2] (x, y) in cells: each head looks in its own direction, each point further away."""
    angles = np.arange(heads) * (2 * np.pi / heads)
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    directions /= np.abs(directions).max(axis=-1, keepdims=True)
    grid = directions[:, None, None] * np.arange(1, points + 1)[:, None]
    return np.broadcast_to(grid, (heads, levels, points, 2)).astype(np.float32)
