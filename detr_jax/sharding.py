"""How arrays lie on devices: a mesh of one axis, "data", over which batches are shared out, and perhaps the state."""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = Any
"""A pure tree of arrays."""

LEAST_SHARDED = 2**12
"""Arrays of fewer elements stay whole on every device: gathering them would take longer than they are worth."""


def create_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all (or the given) devices, those of other processes included, along the axis "data"."""
    devices = devices or jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def mesh_for_batch(batch_size: int) -> Mesh:
    """A mesh of as many devices as share a batch evenly."""
    devices = jax.devices()
    return create_mesh(devices[: math.gcd(batch_size, len(devices))])


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def shared_out(mesh: Mesh) -> NamedSharding:
    """The first dimension, the batch, shared out over the devices."""
    return NamedSharding(mesh, P("data"))


def layout(tree: Tree, mesh: Mesh, fsdp: bool) -> Tree:
    """The sharding of each array of a tree of arrays or of their shapes.

    With ``fsdp``, arrays of at least `LEAST_SHARDED` elements are shared out along their largest dimension that the
    number of devices divides (the last of several); all else is whole on every device.
    """
    return jax.tree.map(lambda x: NamedSharding(mesh, _split_over(x.shape, mesh.size) if fsdp else P()), tree)


def _split_over(shape: tuple[int, ...], parts: int) -> P:
    divisible = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or not divisible or math.prod(shape) < LEAST_SHARDED:
        return P()
    chosen = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*[None] * chosen, "data")


def place(tree: Tree, shardings: Tree) -> Tree:
    """Lays arrays out that every process has whole."""
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def place_one(x: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place_one, tree, shardings)


def own_rows(mesh: Mesh, batch_size: int) -> list[int]:
    """The rows of a batch that lie on this process's devices, ascending."""
    indices = shared_out(mesh).addressable_devices_indices_map((batch_size,))
    return sorted({row for index in indices.values() if index for row in range(*index[0].indices(batch_size))})


def place_rows(arrays: Tree, mesh: Mesh) -> Tree:
    """Batches on the devices, from this process's `own_rows` of them."""
    if not mesh.is_multi_process:
        return jax.device_put(arrays, shared_out(mesh))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(shared_out(mesh), x), arrays)
