"""The assignment of targets to queries that has the lowest total cost (DETR, section 3.1, equation 1)."""

import os

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from detr_jax.matching.device import match_on_device
from detr_jax.matching.host import match_on_host


def match(cost: jax.Array, count: jax.Array, solver: str = "scipy", mesh: Mesh | None = None) -> jax.Array:
    """Assign the targets of every image to queries at the lowest total cost.

    Args:
      cost: [L, B, Q, T] float32.
      count: [B] int32, real targets of each image; later columns are ignored.
      solver: "scipy" runs `scipy.optimize.linear_sum_assignment` on the host, with one callback per device;
        "device" finds the same optimum without leaving the accelerator.
      mesh: the mesh over whose axis "data" the batch is sharded. Each device then matches its own images. Without it,
        a batch on several devices is gathered onto one.

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
    return solve(lax.stop_gradient(cost).astype(jnp.float32), count)


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
