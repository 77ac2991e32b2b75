"""Multi-head attention against explicit loops in numpy."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.models import MultiHeadAttention
from detr_jax.models.attention import attention_bias, dropout

BATCH, QUERIES, KEYS, DIM, HEADS = 2, 4, 6, 12, 3


@pytest.fixture
def attention(rngs):
    module = MultiHeadAttention(DIM, HEADS, dropout=0.1, dtype=jnp.dtype("float32"), rngs=rngs)
    for projection in (
        module.query,
        module.key,
        module.value,
        module.output,
    ):  # biases start at zero: move them
        projection.bias[...] = 0.5 * rngs.params.normal((DIM,))
    return module


@pytest.fixture
def inputs(rng):
    """Queries, keys and values, each its own."""
    return [jnp.asarray(rng.normal(size=(BATCH, n, DIM)), jnp.float32) for n in (QUERIES, KEYS, KEYS)]


def attend_by_loops(module, inputs, is_masked, added):
    """Softmax over the keys that are not masked, head by head; is_masked and added are functions of (b, n, k)."""
    projected = [
        np.asarray(x, np.float64) @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])
        for x, linear in zip(inputs, (module.query, module.key, module.value), strict=True)
    ]
    out = np.zeros((BATCH, QUERIES, DIM))
    width = DIM // HEADS
    for b, n, head in np.ndindex(BATCH, QUERIES, HEADS):
        channels = slice(head * width, (head + 1) * width)
        q, keys, values = (
            projected[0][b, n, channels],
            projected[1][b, :, channels],
            projected[2][b, :, channels],
        )
        seen = [k for k in range(KEYS) if not is_masked(b, n, k)]
        weights = np.array([math.exp(q @ keys[k] / math.sqrt(width) + added(b, n, k)) for k in seen])
        out[b, n, channels] = sum(w * values[k] for w, k in zip(weights / weights.sum(), seen, strict=True))
    return out @ np.asarray(module.output.kernel[...]) + np.asarray(module.output.bias[...])


def no_mask(b, n, k):
    return False


def nothing(b, n, k):
    return 0.0


def random_mask(rng, *shape):
    """True where masked, with the first key always free."""
    mask = rng.random(shape) < 0.5
    mask[..., 0] = False
    return mask


def test_attention_without_masks(attention, inputs):
    np.testing.assert_allclose(attention(*inputs), attend_by_loops(attention, inputs, no_mask, nothing), atol=1e-5)


def test_padded_keys_get_no_weight(rng, attention, inputs):
    mask = random_mask(rng, BATCH, KEYS)
    expected = attend_by_loops(attention, inputs, lambda b, n, k: mask[b, k], nothing)
    np.testing.assert_allclose(attention(*inputs, key_padding_mask=jnp.asarray(mask)), expected, atol=1e-5)


@pytest.mark.parametrize("per_image", [False, True])
def test_a_bool_attention_mask_hides_keys_from_single_queries(rng, attention, inputs, per_image):
    masks = random_mask(rng, BATCH if per_image else 1, QUERIES, KEYS)
    expected = attend_by_loops(attention, inputs, lambda b, n, k: masks[b % len(masks), n, k], nothing)
    given = jnp.asarray(masks if per_image else masks[0])
    np.testing.assert_allclose(attention(*inputs, attn_mask=given), expected, atol=1e-5)


def test_a_float_attention_mask_is_added_before_the_softmax_beside_padding(rng, attention, inputs):
    bias, mask = rng.normal(size=(QUERIES, KEYS)), random_mask(rng, BATCH, KEYS)
    bias[:, 1] = -np.inf
    expected = attend_by_loops(attention, inputs, lambda b, n, k: mask[b, k] or k == 1, lambda b, n, k: bias[n, k])
    found = attention(*inputs, attn_mask=jnp.asarray(bias, jnp.float32), key_padding_mask=jnp.asarray(mask))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_query_whose_keys_are_all_masked_gets_their_mean(rng, attention, inputs):
    mask = random_mask(rng, QUERIES, KEYS)
    mask[2] = True
    found = attention(*inputs, attn_mask=jnp.asarray(mask))
    mean = attention.output(attention.value(inputs[2]).mean(axis=1))
    np.testing.assert_allclose(found[:, 2], mean, atol=1e-5)


@pytest.mark.parametrize("attn_mask", [True, -np.inf], ids=["bool", "float"])
def test_two_masks_that_hide_everything_leave_it_finite(attention, inputs, attn_mask):
    masks = {
        "key_padding_mask": jnp.ones((BATCH, KEYS), bool),
        "attn_mask": jnp.full((QUERIES, KEYS), attn_mask),
    }

    def total(inputs):
        return attention(*inputs, **masks).sum()

    assert np.isfinite(attention_bias(**masks)).all()
    value, gradient = nnx.value_and_grad(total)(inputs)
    assert np.isfinite(value)
    assert all(np.isfinite(part).all() for part in gradient)


def test_without_masks_there_is_no_bias():
    assert attention_bias(None, None) is None


def test_projections_start_as_one_packed_matrix_does(rngs):
    module = MultiHeadAttention(64, 4, dropout=0.0, dtype=jnp.dtype("float32"), rngs=rngs)
    packed, own = math.sqrt(6 / (64 + 3 * 64)), math.sqrt(6 / (64 + 64))
    bounds = {"query": packed, "key": packed, "value": packed, "output": own}
    for name, bound in bounds.items():
        linear = getattr(module, name)
        assert 0.95 * bound < jnp.abs(linear.kernel[...]).max() <= bound, name
        assert not linear.bias[...].any(), name


def test_dropout_zeroes_its_share_and_keeps_the_mean(rngs):
    x = jnp.ones((200, 200))
    dropped = np.asarray(dropout(x, 0.25, rngs))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    assert (dropped == 0).mean() == np.clip((dropped == 0).mean(), 0.23, 0.27)
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, rngs), x)


@pytest.mark.parametrize("rate", [0.1, 0.001])
def test_the_rate_of_dropout_is_exact_and_elements_are_independent(rngs, rate):
    dropped = np.asarray(dropout(jnp.ones((2, 1000, 2003)), rate, rngs)) == 0  # 2003: no multiple of four
    of_a_row = 256 * rate % 1 * (1 - 256 * rate % 1) / 256**2  # variance of a rate that a row rounds to 1 / 256
    spread = np.sqrt(rate / dropped.size + of_a_row / 2000)
    assert abs(dropped.mean() - rate) < 6 * spread
    deviation = dropped - dropped.mean()
    for lag in (1, 2, 500, 501, 1002):  # 501 apart, elements are decided by one random word
        covariance = (deviation[..., lag:] * deviation[..., :-lag]).mean()
        assert abs(covariance) < 2 * of_a_row + 8 * rate / np.sqrt(dropped.size), lag


def test_attention_drops_weights_only_with_rngs(attention, inputs, rngs):
    np.testing.assert_array_equal(attention(*inputs), attention(*inputs))
    assert not np.array_equal(attention(*inputs), attention(*inputs, rngs=rngs))
