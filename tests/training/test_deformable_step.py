"""The training step of Deformable DETR: sharded, in micro-batches, with rematerialization and in bfloat16."""

import jax
import numpy as np
import pytest

from detr_jax.data import ShapesDataset, TrainPlan, batches
from detr_jax.sharding import create_mesh, shard, state_shardings
from detr_jax.testing import tiny_deformable_config
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.state import create_model, create_state
from detr_jax.training.step import create_train_step

STEPS = 2


def _config(**model):
    """Two stages, so that the proposals and their loss are part of the step, and enough channels to be sharded."""
    two_stages = {"refine_boxes": True, "two_stage": True, "hidden_dim": 128, "num_heads": 4, "dropout": 0.0}
    return tiny_deformable_config(**{**two_stages, **model})


def _run(config, devices=1):
    """The parameters after some steps, and the losses of each step."""
    mesh, model = create_mesh(jax.devices()[:devices]), create_model(config)
    optimizer = create_optimizer(config.optimizer, 10, 5)
    state = create_state(model, optimizer, config, mesh)
    frozen = shard(model.frozen, state_shardings(model.frozen, mesh, config.training.fsdp))
    step = create_train_step(model.abstract, optimizer, config, mesh)
    source = ShapesDataset(config.data.sources["shapes"], "train")
    size = config.training.batch_size
    stream = batches(TrainPlan(source, config.data, size, seed=1), source, size, config.data)
    losses = []
    for batch, _ in zip(stream, range(STEPS), strict=False):
        state, terms = jax.block_until_ready(step(state, frozen, batch.inputs))
        terms = jax.device_get(terms)
        losses.append({name: value for name, value in terms.items() if name.startswith("loss")})
    return jax.device_get(state.params), losses


@pytest.fixture(scope="module")
def plain():
    return _run(_config())


def _assert_equal(run, plain, rtol):
    for ours, expected in zip(run[1], plain[1], strict=True):
        assert ours.keys() == expected.keys()
        for name, value in ours.items():
            assert value == pytest.approx(expected[name], rel=rtol, abs=1e-4), name


def test_the_loss_has_terms_of_the_proposals(plain):
    assert {"loss_ce_enc", "loss_bbox_enc", "loss_giou_enc", "loss_ce", "loss_ce_0"} <= plain[1][0].keys()


def test_a_sharded_step_on_two_devices_in_micro_batches_equals_the_plain_step(plain):
    config = _config()
    config.training.fsdp, config.training.accumulate = True, 2
    run = _run(config, devices=2)
    _assert_equal(run, plain, rtol=1e-3)
    for ours, expected in zip(jax.tree.leaves(run[0]), jax.tree.leaves(plain[0]), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_rematerialization_changes_no_loss(plain):
    _assert_equal(_run(_config(remat="all")), plain, rtol=1e-4)


def test_bfloat16_has_a_similar_loss_and_float32_parameters(plain):
    params, losses = _run(_config(dtype="bfloat16"))
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    assert losses[0]["loss"] == pytest.approx(plain[1][0]["loss"], rel=0.05)
    assert losses[0]["loss"] != plain[1][0]["loss"]
