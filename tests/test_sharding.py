"""Shardings of states and batches, against their definition."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from detr_jax.sharding import LEAST_SHARDED, create_mesh, own_rows, shard, state_shardings


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_large_arrays_are_sharded_along_their_largest_divisible_dimension(rng, devices):
    mesh = create_mesh(jax.devices()[:devices])
    for _ in range(200):
        shape = tuple(rng.integers(1, 40, rng.integers(0, 5)).tolist())
        x = jax.ShapeDtypeStruct(shape, np.float32)
        assert state_shardings(x, mesh, False).spec == P()
        splits = np.array(shape) // np.array(state_shardings(x, mesh, True).shard_shape(shape)) if shape else np.ones(0)
        divisible = [length for length in shape if length % devices == 0]
        if devices == 1 or np.prod(shape) < LEAST_SHARDED or not divisible:
            assert (splits == 1).all()
        else:
            assert sorted(splits)[-1] == devices == splits.prod()
            assert shape[int(splits.argmax())] == max(divisible)


def test_a_sharded_array_keeps_its_values_and_takes_fewer_bytes_per_device(rng):
    mesh = create_mesh()
    tree = {"large": rng.normal(size=(64, 3, 64)).astype(np.float32), "small": rng.normal(size=(8,)).astype(np.float32)}
    sharded = shard(tree, state_shardings(tree, mesh, True))
    for name, x in tree.items():
        np.testing.assert_array_equal(sharded[name], x)
    assert sharded["large"].addressable_shards[0].data.size * mesh.size == tree["large"].size
    assert sharded["small"].is_fully_replicated


def test_one_process_has_all_rows_of_a_batch():
    assert own_rows(create_mesh(), 8) == list(range(8))
