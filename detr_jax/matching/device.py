"""The same optimum as the host's, without leaving the accelerator."""

import jax
import jax.numpy as jnp
from jax import lax

from detr_jax.structures import UNMATCHED

_Assignment = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""The query of each target, the target of each query, and the dual variables of targets and queries."""


def match_on_device(cost: jax.Array, count: jax.Array) -> jax.Array:
    """Match by the Hungarian method as a compiled loop.

    Args:
      cost: [L, B, Q, T] float32.
      count: [B] int32, real targets of each image.

    Returns:
      [L, B, T] int32, the query of each target, or -1.
    """
    layers, batch, _, targets = cost.shape
    if targets == 0:
        return jnp.zeros((layers, batch, 0), jnp.int32)
    per_image = jax.vmap(jax.vmap(_shortest_augmenting_paths), in_axes=(0, None))
    return per_image(cost, count)


def _shortest_augmenting_paths(cost: jax.Array, count: jax.Array) -> jax.Array:
    """Optimal assignment of one image, [Q, T] and [] to [T], by successive shortest augmenting paths.

    Targets are inserted one after another. For each, Dijkstra's algorithm over the reduced costs grows a tree of
    alternating paths until it reaches a free query, and the path is flipped (Jonker and Volgenant, 1987; Crouse, "On
    implementing 2D rectangular assignment algorithms", 2016).
    """
    num_queries, num_targets = cost.shape
    cost = jnp.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6).T  # [T, Q]
    cost = jnp.where((jnp.arange(num_targets) < count)[:, None], cost, 0.0)
    if num_targets > num_queries:  # surplus targets take artificial queries of higher cost, and so stay unmatched
        artificial = jnp.full((num_targets, num_targets - num_queries), cost.max() + 1.0)
        cost = jnp.concatenate([cost, artificial], axis=1)
    columns = cost.shape[1]

    def insert(target: jax.Array, state: _Assignment) -> _Assignment:
        query_of, target_of, u, v = state
        distance, reached_from, in_tree, lowest, sink = _grow_tree(cost, target, target_of, u, v)
        # the dual variables of the tree: targets pay up to the sink's distance, queries get the same back
        slack = jnp.where(in_tree, lowest - distance, 0.0)
        rows = jnp.where(in_tree & (target_of >= 0), target_of, num_targets)
        u = u.at[target].add(lowest).at[rows].add(slack, mode="drop")
        query_of, target_of = _flip_path(query_of, target_of, reached_from, target, sink)
        return query_of, target_of, u, v - slack

    state = (
        jnp.full(num_targets, UNMATCHED),
        jnp.full(columns, -1),
        jnp.zeros(num_targets),
        jnp.zeros(columns),
    )
    query_of, *_ = lax.fori_loop(0, jnp.minimum(count, num_targets), insert, state)
    return jnp.where(query_of < num_queries, query_of, UNMATCHED).astype(jnp.int32)


def _grow_tree(
    cost: jax.Array, target: jax.Array, target_of: jax.Array, u: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """Shortest alternating paths from a target to the nearest free query, by Dijkstra's algorithm.

    Returns:
      For each query the distance, the target that it was reached from, and whether it is in the tree; the distance of
      the free query, and its index.
    """
    columns = cost.shape[1]

    def unfinished(search: tuple) -> jax.Array:
        return search[-1] < 0

    def grow(search: tuple) -> tuple:
        distance, reached_from, in_tree, row, lowest, _ = search
        candidate = lowest + cost[row] - u[row] - v
        shorter = ~in_tree & (candidate < distance)
        distance = jnp.where(shorter, candidate, distance)
        reached_from = jnp.where(shorter, row, reached_from)
        nearest = jnp.argmin(jnp.where(in_tree, jnp.inf, distance))
        is_free = target_of[nearest] < 0
        return (
            distance,
            reached_from,
            in_tree.at[nearest].set(True),
            jnp.where(is_free, row, target_of[nearest]),
            distance[nearest],
            jnp.where(is_free, nearest, -1),
        )

    start = (
        jnp.full(columns, jnp.inf),
        jnp.full(columns, -1),
        jnp.zeros(columns, bool),
        target,
        jnp.zeros(()),
        jnp.asarray(-1),
    )
    distance, reached_from, in_tree, _, lowest, sink = lax.while_loop(unfinished, grow, start)
    return distance, reached_from, in_tree, lowest, sink


def _flip_path(
    query_of: jax.Array, target_of: jax.Array, reached_from: jax.Array, target: jax.Array, sink: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Assign every target on the path from the free query ``sink`` back to ``target`` to its next query."""

    def flip(path: tuple) -> tuple:
        query_of, target_of, query, _ = path
        row = reached_from[query]
        previous = query_of[row]
        return query_of.at[row].set(query), target_of.at[query].set(row), previous, row == target

    query_of, target_of, _, _ = lax.while_loop(
        lambda path: ~path[-1], flip, (query_of, target_of, sink, jnp.asarray(False))
    )
    return query_of, target_of
