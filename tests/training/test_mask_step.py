"""The training step with masks: on several devices, in micro-batches, in bfloat16, and with a frozen detector."""

import dataclasses

import jax
import numpy as np
import pytest

from detr_jax.config import (
    MASK_PARAMETERS,
    ConfigError,
    DETRConfig,
    LossConfig,
    MaskDice,
    MaskHeadConfig,
    ShapesConfig,
    check,
    mask_terms,
)
from detr_jax.testing import tiny_config
from detr_jax.training.memory import step_memory
from detr_jax.training.optimizer import check_parameter_names
from detr_jax.training.state import abstract_model, create_model
from detr_jax.weights.trees import by_path
from tests.training.steps import first_batches, run_steps


def _config(**model):
    config = tiny_config()
    defaults = {"hidden_dim": 128, "num_heads": 8, "dropout": 0.0, "masks": MaskHeadConfig(block_size=3)}
    config.model = dataclasses.replace(config.model, **{**defaults, **model})
    config.data = dataclasses.replace(
        config.data,
        masks=True,
        train_buckets=((64, 64),),
        val_buckets=((64, 64),),
        sources={"shapes": ShapesConfig(train_images=32, val_images=8, max_objects=5)},
    )
    config.loss = LossConfig(terms=mask_terms(), matcher="device")
    return check(config)


def _run(config, devices=1):
    """The parameters before and after some steps, and the losses of each step."""
    before, state, terms = run_steps(config, devices, steps=2)
    return before, state.params, [{k: v for k, v in x.items() if k.startswith("loss")} for x in terms]


@pytest.fixture(scope="module")
def plain():
    return _run(_config())


def _assert_equal(run, plain, rtol):
    for ours, expected in zip(run[2], plain[2], strict=True):
        assert ours.keys() == expected.keys()
        assert {"loss_mask", "loss_dice"} <= ours.keys()
        assert not any(name.startswith(("loss_mask_", "loss_dice_")) for name in ours), "only the last layer has masks"
        for name, value in ours.items():
            assert value == pytest.approx(expected[name], rel=rtol, abs=1e-4), name


def test_a_sharded_step_on_four_devices_in_micro_batches_equals_the_plain_step(plain):
    config = _config()
    config.training.fsdp, config.training.accumulate = True, 2
    run = _run(config, devices=4)
    _assert_equal(run, plain, rtol=1e-3)
    for ours, expected in zip(jax.tree.leaves(run[1]), jax.tree.leaves(plain[1]), strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-4)


@pytest.mark.parametrize("block_size", [1, 16])
def test_the_size_of_blocks_changes_no_loss(plain, block_size):
    _assert_equal(_run(_config(masks=MaskHeadConfig(block_size=block_size))), plain, rtol=1e-4)


def test_bfloat16_has_similar_losses(plain):
    _, params, losses = _run(_config(dtype="bfloat16"))
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(params))
    for name in ("loss_mask", "loss_dice"):
        assert losses[0][name] == pytest.approx(plain[2][0][name], rel=0.1)


def test_only_the_mask_head_is_trained_if_the_detector_is_frozen(plain):
    config = _config()
    config.optimizer.frozen, config.optimizer.trained = (), MASK_PARAMETERS
    config.loss = dataclasses.replace(config.loss, auxiliary=False)
    model = create_model(config)
    assert {path.split("/")[0] for path in by_path(model.params)} == {"mask_head"}
    before, after, losses = _run(config)
    changed = {path for path, x in by_path(after).items() if not np.array_equal(x, by_path(before)[path])}
    assert len(changed) > 0.8 * len(by_path(after))
    assert {"loss_ce", "loss_bbox", "loss_mask", "loss_dice"} <= losses[0].keys(), "the other losses are logged"
    assert losses[0]["loss_mask"] == pytest.approx(plain[2][0]["loss_mask"], rel=1e-3)


def test_names_of_trained_parameters_are_checked():
    config = _config()
    config.optimizer.trained = ("mask_heads",)
    params = by_path(abstract_model(_config()).params)
    tree = {"mask_head": {"output": 1}, "encoder": {"layers": 1}}
    assert params
    with pytest.raises(ConfigError, match=r"optimizer\.trained holds 'mask_heads'.*there is mask_head"):
        check_parameter_names(config, tree)
    config.optimizer.trained, config.optimizer.frozen = ("mask_head",), ("mask_head",)
    with pytest.raises(ConfigError, match="freeze every parameter"):
        check_parameter_names(config, tree)


def test_a_batch_holds_the_bits_of_its_masks():
    (batch,) = first_batches(_config(), 1)
    masks, bucket = batch.targets.masks, batch.images.shape[1:3]
    assert masks.shape == (len(batch.images), 5, bucket[0] // 8, bucket[1])
    assert masks.dtype == np.uint8
    assert masks.any()


def test_the_memory_of_a_step_with_masks_is_known_before_it_runs():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    without = tiny_config()
    assert step_memory(_config(), (96, 96), 20, mesh).total > step_memory(without, (96, 96), 20, mesh).total


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": DETRConfig(num_classes=3)}, r"loss\.terms\.mask needs masks, and the model predicts none"),
        ({"masks": False}, r"loss\.terms\.mask needs masks, and data\.masks=False does not read them"),
        ({"terms": {"dice": MaskDice(weight=0.0)}}, "holds nothing with a weight above 0"),
    ],
)
def test_what_masks_need_is_said(change, sentence):
    config = _config()
    if "model" in change:
        config.model = change["model"]
    if "masks" in change:
        config.data.masks = False
    if "terms" in change:
        config.loss = LossConfig(terms=change["terms"])
    with pytest.raises(ConfigError, match=sentence):
        check(config)
