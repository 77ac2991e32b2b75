"""The training step of Deformable DETR: sharded, in micro-batches, with rematerialization and in bfloat16."""

import jax
import numpy as np
import pytest

from detr_jax.testing import tiny_deformable_config
from tests.training.steps import assert_equal_losses, losses_of_steps


def _config(**model):
    """Two stages, so that the proposals and their loss are part of the step, and enough channels to be sharded."""
    two_stages = {"refine_boxes": True, "two_stage": True, "hidden_dim": 128, "num_heads": 4, "dropout": 0.0}
    return tiny_deformable_config(**{**two_stages, **model})


@pytest.fixture(scope="module")
def plain():
    return losses_of_steps(_config())


def test_the_loss_has_terms_of_the_proposals(plain):
    assert {"loss_ce_enc", "loss_bbox_enc", "loss_giou_enc", "loss_ce", "loss_ce_0"} <= plain[1][0].keys()


def test_a_sharded_step_on_two_devices_in_micro_batches_equals_the_plain_step(plain):
    config = _config()
    config.training.fsdp, config.training.accumulate = True, 2
    run = losses_of_steps(config, devices=2)
    assert_equal_losses(run, plain, rtol=1e-3)
    for ours, expected in zip(jax.tree.leaves(run[0]), jax.tree.leaves(plain[0]), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_rematerialization_changes_no_loss(plain):
    assert_equal_losses(losses_of_steps(_config(remat="all")), plain, rtol=1e-4)


def test_bfloat16_has_a_similar_loss_and_float32_parameters(plain):
    params, losses = losses_of_steps(_config(dtype="bfloat16"))
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    assert losses[0]["loss"] == pytest.approx(plain[1][0]["loss"], rel=0.05)
    assert losses[0]["loss"] != plain[1][0]["loss"]
