"""Shardings of batches and training states over a mesh of one axis, "data"."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = Any
"""A pure tree of arrays."""

LEAST_SHARDED = 2**12
"""Arrays with fewer elements are always replicated. Gathering them would take longer than the memory is worth."""


def create_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh along the axis "data" of the given devices, or of all devices of all processes."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def mesh_for_batch(batch_size: int) -> Mesh:
    """A mesh of the largest number of devices that divides both the batch size and the number of devices."""
    devices = jax.devices()
    return create_mesh(devices[: math.gcd(batch_size, len(devices))])


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds in full."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of batches: the first dimension is split over the devices."""
    return NamedSharding(mesh, P("data"))


def state_shardings(tree: Tree, mesh: Mesh, fsdp: bool) -> Tree:
    """The sharding of each array in a tree. The tree may hold arrays or their abstract shapes.

    Without ``fsdp`` every array is replicated. With ``fsdp``, arrays of at least `LEAST_SHARDED` elements are sharded
    along their largest dimension that the number of devices divides. If several dimensions are equally large, the last
    one is taken. All other arrays are replicated.
    """
    return jax.tree.map(lambda x: NamedSharding(mesh, _fsdp_spec(x.shape, mesh.size) if fsdp else P()), tree)


def _fsdp_spec(shape: tuple[int, ...], num_devices: int) -> P:
    divisible = [axis for axis, length in enumerate(shape) if length % num_devices == 0]
    if num_devices == 1 or not divisible or math.prod(shape) < LEAST_SHARDED:
        return P()
    chosen = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*[None] * chosen, "data")


def shard(tree: Tree, shardings: Tree) -> Tree:
    """Puts arrays on the devices according to their shardings. Every process must hold every array in full."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def shard_one(x: Any, sharding: NamedSharding) -> jax.Array:
        full = np.asarray(x)
        return jax.make_array_from_callback(full.shape, sharding, lambda index: full[index])

    return jax.tree.map(shard_one, tree, shardings)


def own_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a batch that are stored on this process's devices, in ascending order."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return sorted({row for index in indices.values() if index for row in range(*index[0].indices(batch_size))})


def shard_rows(arrays: Tree, mesh: Mesh) -> Tree:
    """Puts a batch on the devices. Each process passes only its `own_rows` of the batch."""
    if not mesh.is_multi_process:
        return jax.device_put(arrays, batch_sharding(mesh))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(batch_sharding(mesh), x), arrays)
