"""The assignment of targets to queries that has the lowest total cost (DETR, section 3.1, equation 1)."""

import os

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Int

from detr_jax.matching.device import match_on_device
from detr_jax.matching.host import match_on_host
from detr_jax.structures import UNMATCHED, Array

_ABSENT_COST = 1e4


def match(
    cost: Float[Array, "L B Q T"],
    count: Int[Array, " B"],
    solver: str = "scipy",
    mesh: Mesh | None = None,
    *,
    absent: Bool[Array, "L B Q"] | None = None,
) -> Int[Array, "L B T"]:
    """Assign the targets of every image to queries at the lowest total cost.

    Args:
      cost: [L, B, Q, T] float32.
      count: [B] int32, real targets of each image; later columns are ignored.
      solver: "scipy" runs `scipy.optimize.linear_sum_assignment` on the host, with one callback per device;
        "device" finds the same optimum without leaving the accelerator.
      mesh: the mesh over whose axis "data" the batch is sharded. Each device then matches its own images. Without it,
        a batch on several devices is gathered onto one.
      absent: [L, B, Q] bool, queries that no target may get, such as proposals on padding.

    Returns:
      [L, B, T] int32, the query of each target. It is -1 (`UNMATCHED`) for columns from ``count`` on, and for the
      remaining targets of an image that has more targets than queries.

    Raises:
      ValueError: an unknown solver.
    """
    if solver not in ("scipy", "device"):
        raise ValueError(f"solver={solver!r} is not known: it must be 'scipy' or 'device'.")
    if solver == "scipy" and callbacks_may_starve(mesh):
        solver = "device"
    solve = match_on_host if solver == "scipy" else match_on_device
    if mesh is not None and mesh.size > 1:
        layers_batch = P(None, "data")
        solve = jax.shard_map(
            solve, mesh=mesh, in_specs=(layers_batch, P("data")), out_specs=layers_batch, check_vma=False
        )
    cost = lax.stop_gradient(cost).astype(jnp.float32)
    if absent is None:
        return solve(cost, count)
    # at this cost a target gets an absent query only if there is no other
    query = solve(jnp.where(absent[..., None], _ABSENT_COST, cost), count)
    return jnp.where(jnp.take_along_axis(absent, jnp.maximum(query, 0), axis=2), UNMATCHED, query)


def callbacks_may_starve(mesh: Mesh | None) -> bool:
    """Whether host callbacks could hang this process.

    Several simulated CPU devices wait for one another inside collectives on XLA's thread pool. If the pool is not much
    larger than their number, no thread is left for a callback. The environment variable NPROC, which jax reads when it
    starts, sets the size of the pool.
    """
    if mesh is None or mesh.size == 1 or mesh.devices.flat[0].platform != "cpu":
        return False
    threads = int(os.environ.get("NPROC") or os.cpu_count() or 1)
    return threads < 4 * len(mesh.local_devices)
