"""`map_blocks`: a function of many items, computed for a few of them at a time to need less memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def map_blocks(
    function: Callable[..., Any],
    arrays: Any,
    block_size: int,
    *,
    count: jax.Array | None = None,
    recompute: bool = False,
) -> Any:
    """Apply a function to blocks of items and join the results. Dimensions: ``B`` batch, ``K`` items.

    Args:
      function: maps a pytree of arrays [B, k, ...] to a pytree of arrays [B, k, ...], for any k.
      arrays: a pytree of arrays [B, K, ...].
      block_size: the largest k.
      count: [B] int, the number of items of each image that matter. Blocks in which no item matters are not computed,
        and their results are zero. None: all matter.
      recompute: the backward pass computes the inner values of a block again instead of keeping them. A single block
        keeps them, because the backward pass would need all of them at once anyway.

    Returns:
      A pytree of arrays [B, K, ...].
    """
    items = jax.tree.leaves(arrays)[0].shape[1]
    blocks = -(-items // block_size)
    if blocks <= 1:
        return function(arrays)
    call = jax.checkpoint(function) if recompute else function
    size = -(-items // blocks)  # blocks of equal size have the least padding

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, blocks * size - items), *[(0, 0)] * (x.ndim - 2)])
        return jnp.moveaxis(x.reshape(x.shape[0], blocks, size, *x.shape[2:]), 1, 0)

    parts = jax.tree.map(split, arrays)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))

    def of_block(numbered: tuple[jax.Array, Any]) -> Any:
        start, part = numbered
        if count is None:
            return call(part)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.cond(start < count.max(), call, lambda _: nothing, part)

    found = lax.map(of_block, (jnp.arange(blocks) * size, parts))

    def join(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], blocks * size, *x.shape[3:])[:, :items]

    return jax.tree.map(join, found)
