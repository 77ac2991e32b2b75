import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.losses import set_loss
from detr_jax.models import DETR, normalize_images
from detr_jax.sharding import create_mesh
from detr_jax.testing import tiny_config
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.state import (
    abstract_batch,
    abstract_model,
    abstract_state,
    create_model,
    create_state,
    initialize_missing,
)
from detr_jax.weights.trees import by_path, with_leaves
from tests.training.steps import first_batches, run_steps

MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.25)


def _config(**model):
    config = tiny_config()
    for name, value in {"dropout": 0.0, "pixel_mean": MEAN, "pixel_std": STD, **model}.items():
        setattr(config.model, name, value)
    return config


@pytest.fixture(scope="module")
def plain():
    """A run on one device, without dropout, matched by scipy."""
    config = _config()
    config.loss.matcher = "scipy"
    return run_steps(config, 1, 3)


def _assert_close(ours, reference, atol):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(reference), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("matcher", ["scipy", "device"])
def test_the_step_on_four_devices_equals_the_step_on_one(plain, matcher):
    config = _config()
    config.loss.matcher = matcher
    _, four, four_terms = run_steps(config, 4, 3)
    for a, b in zip(four_terms, plain[2], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-4), name
    _assert_close(four.params, plain[1].params, atol=2e-5)
    _assert_close(four.ema, plain[1].ema, atol=2e-5)


def test_abstract_model_state_and_batch_have_the_shapes_of_the_arrays():
    config = _config()
    model, optimizer = create_model(config), create_optimizer(config.optimizer, 10, 5)
    abstract = abstract_model(config)
    assert abstract.graphdef == model.graphdef
    (batch,) = first_batches(config, 1)
    for shapes, values in (
        (abstract.params, model.params),
        (abstract.frozen, model.frozen),
        (abstract_state(abstract, optimizer, config), create_state(model, optimizer, config, create_mesh())),
        (abstract_batch(config, (32, 32), config.data.sources["shapes"].max_objects), batch),
    ):
        assert jax.tree.structure(shapes) == jax.tree.structure(values)
        found, expected = ([(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (shapes, values))
        assert found == expected


def test_only_missing_parameters_are_initialized_and_they_equal_the_parameters_of_a_full_initialization():
    config = _config()
    model, abstract = create_model(config), abstract_model(config)
    shapes = by_path(abstract.full_tree)
    given = {path: np.full(x.shape, 7, x.dtype) for path, x in shapes.items() if "class_head" not in path}
    partly = abstract.with_tree(with_leaves(abstract.full_tree, shapes | given))
    initialized = by_path(initialize_missing(partly, config).full_tree)
    for path, value in by_path(model.full_tree).items():
        np.testing.assert_array_equal(initialized[path], given.get(path, value), err_msg=path)


def test_micro_batches_on_two_devices_equal_the_full_batch(plain):
    config = _config()
    config.training.accumulate = 2
    _, state, accumulated = run_steps(config, 2, 3)
    _assert_close(state.params, plain[1].params, atol=2e-5)
    for a, b in zip(accumulated, plain[2], strict=True):
        for name in a:
            if name.startswith("loss") or name in ("gradient_norm", "cardinality_error"):
                assert a[name] == pytest.approx(b[name], rel=1e-4), name


def test_the_gradient_equals_the_gradient_of_the_set_loss_and_frozen_parameters_have_none(plain):
    config = _config()
    config.optimizer.frozen = ("backbone/stem", "encoder")
    model = DETR(config.model, rngs=nnx.Rngs(config.training.seed))
    batch = jax.tree.map(jnp.asarray, first_batches(config, 1)[0])
    images, sizes, targets = batch.images, batch.valid_sizes, batch.targets

    def loss_of(module):
        return set_loss(module(normalize_images(images, sizes, MEAN, STD), sizes), targets, config.loss)[0]

    loss, gradient = nnx.jit(nnx.value_and_grad(loss_of))(model)
    _, state, terms = run_steps(config, 1, 1)
    assert terms[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert terms[0]["loss"] == pytest.approx(plain[2][0]["loss"], rel=1e-5)
    trained = nnx.as_pure(gradient)
    del trained["encoder"], trained["backbone"]["stem"]
    norm = np.sqrt(sum(float(jnp.square(g).sum()) for g in jax.tree.leaves(trained)))
    assert terms[0]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert jax.tree.structure(state.params) == jax.tree.structure(trained)


def test_the_ema_follows_the_parameters(plain):
    config = _config()
    before, state, _ = run_steps(config, 1, 1)
    decay = config.training.ema_decay
    expected = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, before, state.params)
    _assert_close(state.ema, expected, atol=1e-7)


def test_bfloat16_keeps_float32_parameters_and_a_similar_loss(plain):
    _, state, terms = run_steps(_config(dtype="bfloat16"), 1, 1)
    assert all(x.dtype == np.float32 for x in jax.tree.leaves(state.params))
    assert terms[0]["loss"] == pytest.approx(plain[2][0]["loss"], rel=0.03)
    assert terms[0]["loss"] != plain[2][0]["loss"]


def test_dropout_depends_only_on_the_seed_and_the_step(plain):
    first, again = (run_steps(_config(dropout=0.5), 1, 3)[2] for _ in range(2))
    assert [t["loss"] for t in first] == [t["loss"] for t in again]
    assert first[0]["loss"] != plain[2][0]["loss"]
