"""Bipartite matching of predictions and targets (DETR, section 3.1, equation 1).

Dimensions: ``L`` decoder layers, ``B`` batch, ``Q`` object queries, ``T`` targets of an image (padded),
``C`` classes.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from scipy.optimize import linear_sum_assignment

from detr_jax.boxes import cxcywh_to_xyxy, generalized_iou
from detr_jax.config import LossConfig
from detr_jax.structures import Targets as Targets

UNMATCHED = -1

_PACKED_TARGETS = 16
"""Targets an image that a callback is given room for; COCO has 7.3 on average, and batches are padded to 93."""


def matching_cost(logits: jax.Array, boxes: jax.Array, targets: Targets, config: LossConfig) -> jax.Array:
    """Cost of giving each target to each query, for all decoder layers at once.

    ``cost_class * -p(label) + cost_bbox * |b - b_target|_1 + cost_giou * -GIoU``, where the softmax behind p
    includes "no object".

    Args:
      logits: [L, B, Q, C + 1] float32.
      boxes: [L, B, Q, 4] float32, cxcywh in 0..1.

    Returns:
      [L, B, Q, T] float32; columns from ``count`` on mean nothing. No gradient flows through it.
    """
    logits, boxes = lax.stop_gradient((logits, boxes))
    probabilities = jax.nn.softmax(logits, axis=-1)
    labels = jnp.broadcast_to(targets.labels[None, :, None], (*logits.shape[:3], targets.labels.shape[1]))
    class_cost = -jnp.take_along_axis(probabilities, labels, axis=-1)

    predicted, wanted = boxes[:, :, :, None], targets.boxes[None, :, None]  # [L, B, Q, 1, 4], [1, B, 1, T, 4]
    l1_cost = jnp.abs(predicted - wanted).sum(axis=-1)
    giou_cost = -generalized_iou(cxcywh_to_xyxy(predicted), cxcywh_to_xyxy(wanted))
    return config.cost_class * class_cost + config.cost_bbox * l1_cost + config.cost_giou * giou_cost


def match(cost: jax.Array, count: jax.Array, solver: str = "scipy", mesh: Mesh | None = None) -> jax.Array:
    """The assignment of targets to queries that has the lowest total cost.

    Args:
      cost: [L, B, Q, T] float32.
      count: [B] int32, real targets of each image; the columns behind them are ignored.
      solver: "scipy" runs `scipy.optimize.linear_sum_assignment` on the host, in one callback a device;
        "device" finds the same optimum without leaving the accelerator.
      mesh: the mesh over whose axis "data" the batch is sharded. Each device then matches its own images;
        without it, a batch on several devices would be gathered onto one.

    Returns:
      [L, B, T] int32, the query of each target, and -1 (`UNMATCHED`) for columns behind ``count`` and, where an
      image has more targets than there are queries, for the targets that found none.

    Raises:
      ValueError: an unknown solver.
    """
    if solver not in ("scipy", "device"):
        raise ValueError(f"solver={solver!r} is not known: it must be 'scipy' or 'device'.")
    if solver == "scipy" and callbacks_may_starve(mesh):
        solver = "device"
    solve = _match_on_host if solver == "scipy" else _match_on_device
    if mesh is not None and mesh.size > 1:
        layers_batch = P(None, "data")
        solve = jax.shard_map(
            solve, mesh=mesh, in_specs=(layers_batch, P("data")), out_specs=layers_batch, check_vma=False
        )
    return solve(lax.stop_gradient(cost).astype(jnp.float32), count)


def callbacks_may_starve(mesh: Mesh | None) -> bool:
    """Whether host callbacks could hang this process.

    Several simulated CPU devices wait for one another inside collectives on XLA's thread pool; where the
    pool is not much larger than their number, a callback finds no thread left to run on. The environment
    variable NPROC, read when jax starts, sets the size of the pool.
    """
    if mesh is None or mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        return False
    threads = int(os.environ.get("NPROC") or os.cpu_count() or 1)
    return threads < 4 * len(mesh.local_devices)


def _match_on_host(cost: jax.Array, count: jax.Array) -> jax.Array:
    """`match` by scipy in one callback, to which the real targets alone travel unless there are unusually many."""
    layers, batch, queries, targets = cost.shape
    count = jnp.minimum(count, targets)

    def whole() -> jax.Array:
        rows = cost.swapaxes(2, 3).reshape(layers, batch * targets, queries)
        assigned = _call_scipy(rows, jnp.arange(batch) * targets, count)
        return assigned.reshape(layers, batch, targets)

    def packed() -> jax.Array:
        is_real = jnp.arange(targets)[None] < count[:, None]
        image, target = jnp.nonzero(is_real, size=batch * _PACKED_TARGETS, fill_value=batch)  # the rest: past the end
        rows = cost.at[:, image, :, target].get(mode="fill", fill_value=0.0).swapaxes(0, 1)  # [L, R, Q]
        assigned = _call_scipy(rows, jnp.cumsum(count) - count, count)
        nothing = jnp.full((layers, batch, targets), UNMATCHED, jnp.int32)
        return nothing.at[:, image, target].set(assigned, mode="drop")

    if targets <= _PACKED_TARGETS:
        return whole()
    return lax.cond(count.sum() <= batch * _PACKED_TARGETS, packed, whole)


def _call_scipy(rows: jax.Array, start: jax.Array, count: jax.Array) -> jax.Array:
    rows = jnp.nan_to_num(rows, nan=1e6, posinf=1e6, neginf=-1e6)  # of a diverged model; the loss then tells
    shape = jax.ShapeDtypeStruct(rows.shape[:2], jnp.int32)
    return jax.pure_callback(solve_with_scipy, shape, rows, start, count, vmap_method="sequential")


def solve_with_scipy(rows: np.ndarray, start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The assignments of a batch on the host, in numpy alone: a jax operation inside a callback would hang.

    Args:
      rows: [L, R, Q] float32, finite: the costs of every target, those of an image side by side.
      start: [B], the first row of each image.
      count: [B], rows of each image.

    Returns:
      [L, R] int32, the query of each row, and -1 (`UNMATCHED`) for rows that have none or belong to no image.
    """
    rows, start, count = np.asarray(rows, np.float64), np.asarray(start), np.asarray(count)  # scipy's type, at once
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


def _match_on_device(cost: jax.Array, count: jax.Array) -> jax.Array:
    layers, batch, _, targets = cost.shape
    if targets == 0:
        return jnp.zeros((layers, batch, 0), jnp.int32)
    per_image = jax.vmap(jax.vmap(_shortest_augmenting_paths), in_axes=(0, None))
    return per_image(cost, count)


def _shortest_augmenting_paths(cost: jax.Array, count: jax.Array) -> jax.Array:
    """Optimal assignment of one image, [Q, T] and [] to [T], by successive shortest augmenting paths.

    Targets enter one after another. For each, Dijkstra's algorithm over the reduced costs grows a tree of
    alternating paths until it reaches a free query, and the path is flipped (Jonker and Volgenant, 1987;
    Crouse, "On implementing 2D rectangular assignment algorithms", 2016).
    """
    num_queries, num_targets = cost.shape
    cost = jnp.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6).T  # [T, Q]
    cost = jnp.where((jnp.arange(num_targets) < count)[:, None], cost, 0.0)
    if num_targets > num_queries:  # surplus targets take dearer stand-ins, and so end up unmatched
        stand_ins = jnp.full((num_targets, num_targets - num_queries), cost.max() + 1.0)
        cost = jnp.concatenate([cost, stand_ins], axis=1)
    columns = cost.shape[1]

    def insert(target: jax.Array, state: tuple) -> tuple:
        query_of, target_of, u, v = state  # assignment both ways, and the dual variables of targets and queries

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

        # the dual variables of the tree: targets pay up to the sink's distance, queries get the same back
        slack = jnp.where(in_tree, lowest - distance, 0.0)
        rows = jnp.where(in_tree & (target_of >= 0), target_of, num_targets)
        u = u.at[target].add(lowest).at[rows].add(slack, mode="drop")
        v = v - slack

        def flip(path: tuple) -> tuple:
            query_of, target_of, query, _ = path
            row = reached_from[query]
            previous = query_of[row]
            return query_of.at[row].set(query), target_of.at[query].set(row), previous, row == target

        query_of, target_of, _, _ = lax.while_loop(
            lambda path: ~path[-1], flip, (query_of, target_of, sink, jnp.asarray(False))
        )
        return query_of, target_of, u, v

    state = (
        jnp.full(num_targets, UNMATCHED),
        jnp.full(columns, -1),
        jnp.zeros(num_targets),
        jnp.zeros(columns),
    )
    query_of, *_ = lax.fori_loop(0, jnp.minimum(count, num_targets), insert, state)
    return jnp.where(query_of < num_queries, query_of, UNMATCHED).astype(jnp.int32)
