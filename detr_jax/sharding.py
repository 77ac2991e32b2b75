"""How arrays lie on devices: a mesh of one axis, "data", over which batches are shared out."""

import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def create_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all (or the given) devices along the axis "data"."""
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
