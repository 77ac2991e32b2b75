"""Weighted sums of bilinear samples of several feature maps, the core of deformable attention.

Dimensions: ``B`` batch, ``S`` cells of all levels, ``N`` queries, ``A`` heads, ``M`` levels, ``P`` points of a level,
``E`` channels of a head, ``K`` cells that a query reads: 4 for each level and point.

``benchmarks/sampling.py`` compares the forms.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Float32, Int32

from detr_jax.structures import Array

Shapes = tuple[tuple[int, int], ...]
"""(height, width) of each level in cells."""

_CORNERS = 4


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

    The backward pass computes places and factors of the cells again, because they take more memory than the values.

    Args:
      values: [B, S, A, E], the cells of the levels one after another, row by row.
      shapes: (height, width) of each level, with the sum of products S.
      locations: [B, N, A, M, P, 2] float32, (x, y) in 0..1 of the padded level.
      weights: [B, N, A, M, P] float32.

    Returns:
      [B, N, A, E] float32.

    Source: Zhu et al. (2021), equation 3.
    """

    @jax.checkpoint
    def sample(values: Array, locations: Array, weights: Array) -> jax.Array:
        """One head of one image: [S, E], [N, M, P, 2] and [N, M, P] to [N, E]."""
        return weighted_rows(values, *_cells_and_factors(shapes, locations, weights))

    def one_head_after_another(values: Array, locations: Array, weights: Array) -> jax.Array:
        """The values of a head stay in the cache of a CPU."""
        heads = (jnp.moveaxis(x, 2, 0) for x in (values, locations, weights))
        return jnp.moveaxis(lax.map(lambda head: jax.vmap(sample)(*head), tuple(heads)), 0, 2)

    def all_heads_together(values: Array, locations: Array, weights: Array) -> jax.Array:
        return jax.vmap(jax.vmap(sample, in_axes=(1, 1, 1), out_axes=1))(values, locations, weights)

    return lax.platform_dependent(values, locations, weights, cpu=one_head_after_another, default=all_heads_together)


def _cells_and_factors(shapes: Shapes, locations: Array, weights: Array) -> tuple[jax.Array, jax.Array]:
    """The cells [K, N] int32 that each query reads, and their factors [K, N] float32. The four of a point adjoin."""
    cells, factors = [], []
    start = 0
    for level, (height, width) in enumerate(shapes):
        x = locations[:, level, :, 0] * width - 0.5
        y = locations[:, level, :, 1] * height - 0.5
        left, top = jnp.floor(x), jnp.floor(y)
        for row, along_y in ((top, 1 - (y - top)), (top + 1, y - top)):
            for column, along_x in ((left, 1 - (x - left)), (left + 1, x - left)):
                inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
                cells.append(jnp.where(inside, row * width + column, 0.0).astype(jnp.int32) + start)
                factors.append(jnp.where(inside, weights[:, level] * along_x * along_y, 0.0))
        start += height * width

    def in_order(parts: list[jax.Array]) -> jax.Array:
        """[K, N] from a part [N, P] for every level and corner."""
        stacked = jnp.stack(parts).reshape(len(shapes), _CORNERS, *parts[0].shape)
        return stacked.transpose(0, 3, 1, 2).reshape(-1, parts[0].shape[0])

    return in_order(cells), in_order(factors)


@jax.custom_vjp
def weighted_rows(
    table: Float[Array, "S E"], rows: Int32[Array, "K N"], factors: Float32[Array, "K N"]
) -> Float32[Array, "N E"]:
    """``sum over k of factors[k, n] * table[rows[k, n]]``, four k at a time, so that little memory is needed.

    The gradient of the table is float32 until all its parts are added.

    Args:
      table: [S, E].
      rows: [K, N] int32 in 0..S-1, K a multiple of 4.
      factors: [K, N] float32.
    """

    def add(total: jax.Array, four: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        for row, factor in zip(*four, strict=True):
            total = total + factor[:, None] * _read(table, row)
        return total, None

    total = jnp.zeros((rows.shape[1], table.shape[1]), jnp.float32)
    return lax.scan(add, total, (_in_fours(rows), _in_fours(factors)))[0]


def _forward(table: Array, rows: jax.Array, factors: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return weighted_rows(table, rows, factors), (table, rows, factors)


def _backward(saved: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, None, jax.Array]:
    table, rows, factors = saved

    def add(total: jax.Array, four: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        of_factors = []
        for row, factor in zip(*four, strict=True):
            of_factors.append((_read(table, row) * gradient).sum(axis=1))
            total = total.at[row].add(factor[:, None] * gradient, mode="promise_in_bounds")
        return total, jnp.stack(of_factors)

    total = jnp.zeros(table.shape, jnp.float32)
    total, of_factors = lax.scan(add, total, (_in_fours(rows), _in_fours(factors)))
    return total.astype(table.dtype), None, of_factors.reshape(factors.shape)


weighted_rows.defvjp(_forward, _backward)


def _read(table: Array, row: Array) -> jax.Array:
    return table.at[row].get(mode="promise_in_bounds").astype(jnp.float32)


def _in_fours(x: jax.Array) -> jax.Array:
    return x.reshape(-1, _CORNERS, x.shape[1])
