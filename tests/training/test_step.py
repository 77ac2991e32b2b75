import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.data import ShapesDataset, TrainPlan, batches
from detr_jax.losses import set_loss
from detr_jax.matching import Targets
from detr_jax.models import DETR, normalize_images
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.step import DeviceBatch, create_mesh, create_state, create_train_step, split_model
from tests.tiny import tiny_config


def _batches(config, count):
    source = ShapesDataset(config.data.shapes, "train")
    plan = TrainPlan(source, config.data, config.training.batch_size, seed=1)
    stream = batches(plan, source, config.training.batch_size, config.data)
    return [
        DeviceBatch(b.images, b.sizes, Targets(b.boxes, b.labels, b.count))
        for b, _ in zip(stream, range(count), strict=False)
    ]


def _run(config, devices, steps=3):
    """Parameters and terms after some steps on this many devices."""
    mesh = create_mesh(jax.devices()[:devices])
    model = split_model(DETR(config.model, rngs=nnx.Rngs(5)), config)
    optimizer = create_optimizer(config.optimizer, 10, 5)
    state = create_state(model, optimizer, config, mesh)
    before = jax.device_get(state.params)
    step = create_train_step(model, optimizer, config, mesh)
    terms = []
    for batch in _batches(config, steps):
        state, values = jax.block_until_ready(step(state, model.frozen, batch))
        terms.append(jax.device_get(values))
    return before, jax.device_get(state), terms


def _assert_close(ours, reference, atol):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("matcher", ["scipy", "device"])
def test_the_step_on_four_devices_equals_the_step_on_one(matcher):
    config = tiny_config()
    config.model.dropout = 0.0
    config.loss.matcher = matcher
    _, one, one_terms = _run(config, 1)
    _, four, four_terms = _run(config, 4)
    for a, b in zip(one_terms, four_terms, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-4), name
    _assert_close(four.params, one.params, atol=2e-5)
    _assert_close(four.ema, one.ema, atol=2e-5)


@pytest.mark.parametrize("devices", [1, 2])
def test_accumulated_parts_equal_the_whole_batch(devices):
    config = tiny_config()
    config.model.dropout = 0.0
    _, whole, whole_terms = _run(config, 1)
    config.training.accumulate = 2
    _, parts, parts_terms = _run(config, devices)
    _assert_close(parts.params, whole.params, atol=2e-5)
    for a, b in zip(parts_terms, whole_terms, strict=True):
        for name in (name for name in a if name.startswith("loss") or name in ("gradient_norm", "cardinality_error")):
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


def test_the_gradient_is_that_of_the_set_loss_and_frozen_parts_have_none():
    config = tiny_config()
    config.model.dropout = 0.0
    config.optimizer.frozen = ("backbone/stem", "encoder")
    model = DETR(config.model, rngs=nnx.Rngs(5))
    batch = _batches(config, 1)[0]

    def loss_of(module):
        out = module(normalize_images(jnp.asarray(batch.images), jnp.asarray(batch.sizes)), jnp.asarray(batch.sizes))
        return set_loss(out, jax.tree.map(jnp.asarray, batch.targets), config.loss)[0]

    loss, gradient = nnx.value_and_grad(loss_of)(copy.deepcopy(model))
    _, state, terms = _run(config, 1, steps=1)
    assert terms[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    trained = nnx.as_pure(gradient)
    del trained["encoder"], trained["backbone"]["stem"]
    norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(trained)))
    assert terms[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert set(state.params) == set(trained)
    assert "stem" not in state.params["backbone"]


def test_the_moving_average_follows_the_parameters():
    config = tiny_config()
    before, state, _ = _run(config, 1, steps=1)
    decay = config.training.ema_decay
    expected = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, before, state.params)
    _assert_close(state.ema, expected, atol=1e-7)
    config.training.ema_decay = 0.0
    assert _run(config, 1, steps=1)[1].ema is None


def test_bfloat16_keeps_float32_parameters_and_a_similar_loss():
    config = tiny_config()
    config.model.dropout = 0.0
    _, _, exact = _run(config, 1, steps=1)
    config.model.dtype = "bfloat16"
    _, state, rough = _run(config, 1, steps=1)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(state.params))
    assert rough[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.03)
    assert rough[0]["loss"] != exact[0]["loss"]


def test_dropout_depends_on_the_seed_and_the_step_alone():
    config = tiny_config()
    config.model.dropout = 0.5
    first, again = _run(config, 1)[2], _run(config, 1)[2]
    assert [t["loss"] for t in first] == [t["loss"] for t in again]
    config.training.seed = 1
    assert _run(config, 1)[2][0]["loss"] != first[0]["loss"]
