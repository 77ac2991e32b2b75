import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.models import DETR, attention_maps
from detr_jax.testing import tiny_config

SIZE = (48, 64)


def _config(remat):
    config = tiny_config()
    config.model.remat = remat
    config.model.dropout = 0.3
    return config


def _batch(rng):
    return jnp.asarray(rng.normal(size=(2, *SIZE, 3)), jnp.float32), jnp.array([SIZE, [40, 50]])


def test_value_and_gradient_are_those_without_and_dropout_too(rng):
    images, sizes = _batch(rng)
    shape = (2, 2, 5, 4)  # layers, batch, queries, and both 3 classes and "no object" and the sides of a box
    weights = jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32)

    def gradient(remat):
        graph, values = nnx.split(DETR(_config(remat).model, rngs=nnx.Rngs(0)))

        def value(values, key):
            out = nnx.merge(graph, values)(images, sizes, rngs=nnx.Rngs(dropout=key))
            return (weights[0] * out.logits + weights[1] * out.boxes).sum()

        return jax.jit(jax.value_and_grad(value)), nnx.as_pure(values)

    (plain, values), (less, _) = map(gradient, ("none", "all"))
    key, other = jax.random.split(jax.random.key(int(rng.integers(2**31))))
    (expected, reference), (value, found) = plain(values, key), less(values, key)
    assert float(value) == pytest.approx(float(expected), rel=1e-4, abs=1e-4)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(reference), strict=True):
        scale = max(1.0, float(jnp.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=1e-3 * scale, err_msg=jax.tree_util.keystr(path))
    assert float(less(values, other)[0]) != float(value)  # dropout was on


def test_the_attention_of_a_recomputed_model_can_be_drawn(rng):
    images, sizes = _batch(rng)
    plain, recomputed = (DETR(_config(remat).model, rngs=nnx.Rngs(0)) for remat in ("none", "all"))
    found, expected = (nnx.jit(attention_maps)(model, images, sizes) for model in (recomputed, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert recomputed.encoder.remat
