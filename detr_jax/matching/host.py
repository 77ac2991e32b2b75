"""The matching by `scipy.optimize.linear_sum_assignment` on the host, in one callback per device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.optimize import linear_sum_assignment

from detr_jax.structures import UNMATCHED

_PACKED_TARGETS = 16
"""Targets per image that a callback has room for. COCO has 7.3 on average, and batches are padded to 93."""


def match_on_host(cost: jax.Array, count: jax.Array) -> jax.Array:
    """Match by scipy in one callback. Only the real targets are sent to it, unless there are unusually many.

    Args:
      cost: [L, B, Q, T] float32.
      count: [B] int32, real targets of each image.

    Returns:
      [L, B, T] int32, the query of each target, or -1.
    """
    layers, batch, queries, targets = cost.shape
    count = jnp.minimum(count, targets)

    def whole() -> jax.Array:
        rows = cost.swapaxes(2, 3).reshape(layers, batch * targets, queries)
        assigned = _call_scipy(rows, jnp.arange(batch) * targets, count)
        return assigned.reshape(layers, batch, targets)

    def packed() -> jax.Array:
        is_real = jnp.arange(targets)[None] < count[:, None]
        image, target = jnp.nonzero(is_real, size=batch * _PACKED_TARGETS, fill_value=batch)  # fill: past the end
        rows = cost.at[:, image, :, target].get(mode="fill", fill_value=0.0).swapaxes(0, 1)  # [L, R, Q]
        assigned = _call_scipy(rows, jnp.cumsum(count) - count, count)
        nothing = jnp.full((layers, batch, targets), UNMATCHED, jnp.int32)
        return nothing.at[:, image, target].set(assigned, mode="drop")

    if targets <= _PACKED_TARGETS:
        return whole()
    return lax.cond(count.sum() <= batch * _PACKED_TARGETS, packed, whole)


def _call_scipy(rows: jax.Array, start: jax.Array, count: jax.Array) -> jax.Array:
    rows = jnp.nan_to_num(rows, nan=1e6, posinf=1e6, neginf=-1e6)  # a diverged model; its loss is not finite
    shape = jax.ShapeDtypeStruct(rows.shape[:2], jnp.int32)
    return jax.pure_callback(solve_with_scipy, shape, rows, start, count, vmap_method="sequential")


def solve_with_scipy(rows: np.ndarray, start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Solve the assignments of a batch on the host, with numpy only: a jax operation inside a callback can hang.

    Args:
      rows: [L, R, Q] float32, finite: the costs of every target. The targets of an image are adjacent.
      start: [B], the first row of each image.
      count: [B], rows of each image.

    Returns:
      [L, R] int32, the query of each row. It is -1 (`UNMATCHED`) for rows without a query or without an image.
    """
    rows, start, count = np.asarray(rows, np.float64), np.asarray(start), np.asarray(count)  # scipy's own type
    assigned = np.full(rows.shape[:2], UNMATCHED, np.int32)
    spans = [(first, first + number) for first, number in zip(start.tolist(), count.tolist(), strict=True) if number]
    for costs, found in zip(rows, assigned, strict=True):
        for first, last in spans:
            targets, queries = linear_sum_assignment(costs[first:last])
            if len(queries) == last - first:  # then the targets are in order, and a slice is faster
                found[first:last] = queries
            else:
                found[first + targets] = queries
    return assigned
