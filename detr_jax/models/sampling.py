"""Weighted sums of bilinear samples of several feature maps, the core of deformable attention.

Dimensions: ``B`` batch, ``S`` cells of all levels, ``N`` queries, ``A`` heads, ``M`` levels, ``P`` points of a level,
``E`` channels of a head.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Float32

from detr_jax.structures import Array

Shapes = tuple[tuple[int, int], ...]
"""(height, width) of each level in cells."""


def sample_levels(
    values: Float[Array, "B S A E"],
    shapes: Shapes,
    locations: Float32[Array, "B N A M P 2"],
    weights: Float32[Array, "B N A M P"],
) -> Float32[Array, "B N A E"]:
    """The weighted sum over levels and points of each head's values at the locations.

    A value between cells is interpolated bilinearly. The centre of cell (i, j) of a level with h x w cells is at
    x = (j + 0.5) / w, y = (i + 0.5) / h. Outside of the level all values are 0, as with ``grid_sample`` of PyTorch with
    ``align_corners=False`` and padding with zeros.

    Args:
      values: [B, S, A, E], the cells of the levels one after another, row by row.
      shapes: (height, width) of each level, with the sum of products S.
      locations: [B, N, A, M, P, 2] float32, (x, y) in 0..1 of the padded level.
      weights: [B, N, A, M, P] float32.

    Returns:
      [B, N, A, E] float32.

    Source: Zhu et al. (2021), equation 3.
    """
    batch, _, heads, _ = values.shape
    rows = values.swapaxes(1, 2).reshape(batch * heads, *values.shape[1:2], values.shape[3])
    moved = locations.swapaxes(1, 2).reshape(batch * heads, -1, *locations.shape[3:])
    factors = weights.swapaxes(1, 2).reshape(batch * heads, -1, *weights.shape[3:])
    # one head at a time: its values stay in the cache
    sampled = lax.map(lambda head: _sample_head(head[0], head[1], head[2], shapes), (rows, moved, factors))
    return sampled.reshape(batch, heads, *sampled.shape[1:]).swapaxes(1, 2)


def _sample_head(values: jax.Array, locations: jax.Array, weights: jax.Array, shapes: Shapes) -> jax.Array:
    """Values [S, E], locations [N, M, P, 2] and weights [N, M, P] of a head to [N, E] float32."""
    total = jnp.zeros((locations.shape[0], values.shape[1]))
    start = 0
    for level, (height, width) in enumerate(shapes):
        table = values[start : start + height * width]
        start += height * width
        for point in range(locations.shape[2]):
            x = locations[:, level, point, 0] * width - 0.5
            y = locations[:, level, point, 1] * height - 0.5
            left, top = jnp.floor(x), jnp.floor(y)
            for row, along_y in ((top, 1 - (y - top)), (top + 1, y - top)):
                for column, along_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                    index = jnp.where(inside, row * width + column, 0.0).astype(jnp.int32)
                    factor = jnp.where(inside, weights[:, level, point] * along_x * along_y, 0.0)
                    total = total + factor[:, None] * table[index].astype(jnp.float32)
    return total
