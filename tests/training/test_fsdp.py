"""A sharded state (FSDP): the same training with less memory, and checkpoints that fit any sharding."""

import functools

import jax
import numpy as np
import pytest

from detr_jax.checkpoints import Checkpoints
from detr_jax.data import ShapesDataset, TrainPlan
from detr_jax.data.batching import BatchLoader
from detr_jax.sharding import create_mesh, shard, shard_rows, state_shardings
from detr_jax.testing import tiny_config
from detr_jax.training.checkpointing import restore, save
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.state import create_model, create_state
from detr_jax.training.step import create_train_step


def _config(fsdp):
    """Wide enough that most parameters are in arrays that are sharded."""
    config = tiny_config()
    config.model.hidden_dim, config.model.feedforward_dim = 64, 128
    config.model.encoder_layers, config.model.decoder_layers = 0, 1
    config.model.backbone.blocks = (1,)
    config.training.fsdp = fsdp
    return config


@functools.cache
def _model():
    return create_model(_config(False))


def _start(config, devices):
    mesh, model = create_mesh(jax.devices()[:devices]), _model()
    optimizer = create_optimizer(config.optimizer, 10, 5)
    state = create_state(model, optimizer, config, mesh)
    frozen = shard(model.frozen, state_shardings(model.frozen, mesh, config.training.fsdp))
    return model.abstract, state, frozen, create_train_step(model.abstract, optimizer, config, mesh)


def _bytes_on_one_device(tree):
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def runs():
    """Model, state, losses of three steps and given bytes, on four devices, replicated and sharded, with dropout."""
    found = {}
    for fsdp in (False, True):
        config = _config(fsdp)
        model, state, frozen, step = _start(config, 4)
        source = ShapesDataset(config.data.sources["shapes"], "train")
        plan = TrainPlan(source, config.data, config.training.batch_size, seed=1)
        loader = BatchLoader(source, config.training.batch_size)
        losses, compiled = [], None
        for batch in map(loader, (plan[number] for number in range(3))):
            given = batch.inputs
            compiled = compiled or step.lower(state, frozen, given).compile()
            state, terms = jax.block_until_ready(compiled(state, frozen, shard_rows(given, create_mesh())))
            losses.append((float(terms["loss"]), float(terms["gradient_norm"])))
        found[fsdp] = model, state, frozen, losses, compiled.memory_analysis().argument_size_in_bytes
    return found


def test_losses_and_parameters_equal_those_of_a_replicated_state(runs):
    np.testing.assert_allclose(runs[True][3], runs[False][3], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(runs[True][1]), jax.tree.leaves(runs[False][1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_each_device_holds_and_receives_less(runs):
    replicated, sharded = (_bytes_on_one_device(runs[fsdp][1]) for fsdp in (False, True))
    assert sharded < 0.5 * replicated
    given = {fsdp: run[-1] for fsdp, run in runs.items()}
    frozen = {fsdp: _bytes_on_one_device(run[2]) for fsdp, run in runs.items()}
    assert given[False] - given[True] == replicated - sharded + frozen[False] - frozen[True], "the rest is the batch"


@pytest.mark.parametrize(("saved", "restored", "devices"), [(True, False, 1), (False, True, 2)])
def test_a_checkpoint_of_four_devices_restores_on_fewer_in_either_sharding(runs, tmp_path, saved, restored, devices):
    model, state, frozen, *_ = runs[saved]
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    save(checkpoints, model, frozen, _config(saved), state)
    checkpoints.wait()
    config, mesh = _config(restored), create_mesh(jax.devices()[:devices])
    optimizer = create_optimizer(config.optimizer, 10, 5)
    found, found_frozen = restore(checkpoints.folder / "3", model, optimizer, config, mesh)
    checkpoints.close()
    assert int(found.step) == 3
    for a, b in zip(jax.tree.leaves((found, found_frozen)), jax.tree.leaves((state, frozen)), strict=True):
        np.testing.assert_array_equal(a, b)
    expected = _start(config, devices)[1:3]
    for a, b in zip(jax.tree.leaves((found, found_frozen)), jax.tree.leaves(expected), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
