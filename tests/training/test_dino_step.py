"""The training step of DINO: repeated, sharded, in micro-batches, with rematerialization and in bfloat16."""

import jax
import numpy as np
import pytest

from detr_jax.testing import tiny_dino_config
from tests.training.steps import assert_equal_losses, losses_of_steps


def _config(**model):
    """Enough channels to be sharded."""
    return tiny_dino_config(**{"hidden_dim": 128, "num_heads": 4, **model})


@pytest.fixture(scope="module")
def plain():
    return losses_of_steps(_config())


def test_the_loss_has_terms_of_proposals_and_denoising_queries(plain):
    groups = ("", "_0", "_enc", "_dn", "_dn_0")
    names = {f"loss_{name}{group}" for name in ("ce", "bbox", "giou") for group in groups}
    assert plain[1][0].keys() == names | {"loss"}
    assert all(np.isfinite(value) and value > 0 for terms in plain[1] for value in terms.values())
    weights = {"ce": 1, "bbox": 5, "giou": 2}
    total = sum(value * weights[name.split("_")[1]] for name, value in plain[1][0].items() if name != "loss")
    assert plain[1][0]["loss"] == pytest.approx(total, rel=1e-5)


def test_the_noise_follows_from_the_seed_and_the_step(plain):
    again = losses_of_steps(_config())
    assert again[1] == plain[1]
    for one, other in zip(jax.tree.leaves(again[0]), jax.tree.leaves(plain[0]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sharded_step_on_two_devices_equals_the_plain_step(plain):
    config = _config()
    config.training.fsdp = True
    run = losses_of_steps(config, devices=2)
    assert_equal_losses(run, plain, rtol=1e-3)
    for ours, expected in zip(jax.tree.leaves(run[0]), jax.tree.leaves(plain[0]), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_micro_batches_without_denoising_add_up_to_the_large_batch():
    config = _config(denoising_queries=0)
    whole = losses_of_steps(config)
    config.training.accumulate = 2
    assert_equal_losses(losses_of_steps(config), whole, rtol=1e-3)


def test_rematerialization_changes_no_loss(plain):
    assert_equal_losses(losses_of_steps(_config(remat="all")), plain, rtol=1e-4)


def test_bfloat16_has_a_similar_loss_and_float32_parameters(plain):
    params, losses = losses_of_steps(_config(dtype="bfloat16"))
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    assert losses[0]["loss"] == pytest.approx(plain[1][0]["loss"], rel=0.05)
    assert losses[0]["loss"] != plain[1][0]["loss"]
