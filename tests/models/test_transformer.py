"""Encoder and decoder layers against the formulas of the paper's figure, with attention taken from its own module."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.models.transformer import Decoder, Encoder, FeedForward, LayerNorm

BATCH, TOKENS, QUERIES, DIM = 2, 6, 5, 32
both_orders = pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])


@pytest.fixture
def image(rng):
    """Tokens, padding mask and position of a batch of images; the second has two tokens of padding."""
    tokens, position = jnp.asarray(rng.normal(size=(2, BATCH, TOKENS, DIM)), jnp.float32)
    return tokens, jnp.zeros((BATCH, TOKENS), bool).at[1, -2:].set(True), position


@pytest.fixture
def queries(rng):
    return jnp.asarray(rng.normal(size=(QUERIES, DIM)), jnp.float32)


def randomized(module, rng):
    """The module with random norms and biases, which start as ones and zeros."""
    state = nnx.state(module, nnx.Param)
    shifted = jax.tree.map(lambda x: x + jnp.asarray(rng.normal(scale=0.1, size=x.shape), x.dtype), state)
    nnx.update(module, shifted)
    return module


def layer_norm(x, norm):
    x = np.asarray(x, np.float64)
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return jnp.asarray(normed * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...]), jnp.float32)


def feed_forward(x, module):
    x = np.asarray(x)
    hidden = np.maximum(x @ np.asarray(module.expand.kernel[...]) + np.asarray(module.expand.bias[...]), 0)
    return jnp.asarray(hidden @ np.asarray(module.contract.kernel[...]) + np.asarray(module.contract.bias[...]))


def add_and_norm(x, sublayer, residual):
    """The frame of a sublayer, in the order that the residual was configured with."""
    if residual.pre_norm:
        return x + sublayer(layer_norm(x, residual.norm))
    return layer_norm(x + sublayer(x), residual.norm)


def encode_by_formula(x, mask, position, layer):
    def attend(x):
        return layer.self_attention(x + position, x + position, x, key_padding_mask=mask)

    x = add_and_norm(x, attend, layer.self_attention_residual)
    return add_and_norm(x, lambda x: feed_forward(x, layer.feed_forward), layer.feed_forward_residual)


def decode_by_formula(x, queries, memory, mask, position, layer):
    def among_queries(x):
        return layer.self_attention(x + queries[None], x + queries[None], x)

    def to_image(x):
        return layer.cross_attention(x + queries[None], memory + position, memory, key_padding_mask=mask)

    x = add_and_norm(x, among_queries, layer.self_attention_residual)
    x = add_and_norm(x, to_image, layer.cross_attention_residual)
    return add_and_norm(x, lambda x: feed_forward(x, layer.feed_forward), layer.feed_forward_residual)


@both_orders
def test_encoder_follows_the_formula_and_ends_with_a_norm_only_in_pre_norm(rng, rngs, tiny_model, image, pre_norm):
    encoder = randomized(Encoder(tiny_model(pre_norm=pre_norm, encoder_layers=2), rngs=rngs), rng)
    tokens, mask, position = image
    expected = tokens
    for layer in encoder.layers:
        expected = encode_by_formula(expected, mask, position, layer)
    if pre_norm:
        expected = layer_norm(expected, encoder.norm)
    np.testing.assert_allclose(encoder(tokens, mask, position), expected, atol=1e-4)
    assert (encoder.norm is not None) == pre_norm


@both_orders
def test_decoder_starts_at_zero_and_gives_every_layer_through_the_final_norm(
    rng, rngs, tiny_model, image, queries, pre_norm
):
    decoder = randomized(Decoder(tiny_model(pre_norm=pre_norm, decoder_layers=3), rngs=rngs), rng)
    x, expected = jnp.zeros((BATCH, QUERIES, DIM)), []
    for layer in decoder.layers:
        x = decode_by_formula(x, queries, *image, layer)
        expected.append(layer_norm(x, decoder.norm))
    np.testing.assert_allclose(decoder(queries, *image), expected, atol=1e-4)


def test_an_encoder_without_layers_returns_its_tokens(rngs, tiny_model, image):
    np.testing.assert_array_equal(Encoder(tiny_model(encoder_layers=0), rngs=rngs)(*image), image[0])


def test_what_stands_in_padded_tokens_changes_nothing(rng, rngs, tiny_model, image, queries):
    encoder, decoder = Encoder(tiny_model(), rngs=rngs), Decoder(tiny_model(), rngs=rngs)
    tokens, mask, position = image
    noise = jnp.asarray(10 * rng.normal(size=tokens.shape), jnp.float32)
    other = jnp.where(mask[..., None], noise, tokens), mask, jnp.where(mask[..., None], noise, position)
    np.testing.assert_allclose(encoder(*image)[~mask], encoder(*other)[~mask], atol=1e-5)
    np.testing.assert_allclose(decoder(queries, *image), decoder(queries, *other), atol=1e-5)


@both_orders
def test_dropout_acts_only_with_rngs_and_follows_their_key(rngs, tiny_model, image, queries, pre_norm):
    config = tiny_model(pre_norm=pre_norm, dropout=0.2)
    encoder, decoder = Encoder(config, rngs=rngs), Decoder(config, rngs=rngs)

    def run(key):
        dropout = None if key is None else nnx.Rngs(dropout=key)
        memory = encoder(*image, rngs=dropout)
        return decoder(queries, memory, *image[1:], rngs=dropout)

    keys = (None, *(jax.random.key(seed) for seed in (1, 1, 2)))
    still, one, same, other = map(run, keys)
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-3)
    assert not np.allclose(one, still, atol=1e-3)
    np.testing.assert_allclose(still, decoder(queries, encoder(*image), *image[1:]), atol=1e-5)


def test_layer_norm_has_the_epsilon_of_pytorch(rng, rngs):
    norm = LayerNorm(DIM, rngs=rngs)
    x = jnp.asarray(rng.normal(scale=3e-3, size=(4, DIM)), jnp.float32)  # a variance of about epsilon
    np.testing.assert_allclose(norm(x), layer_norm(x, norm), atol=1e-4)
    assert norm(x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_feed_forward_starts_with_xavier_kernels_and_fan_in_biases(rngs, tiny_model):
    module = FeedForward(tiny_model(hidden_dim=64, feedforward_dim=256), rngs=rngs)
    for linear, fan_in in ((module.expand, 64), (module.contract, 256)):
        for value, bound in ((linear.kernel, math.sqrt(6 / 320)), (linear.bias, 1 / math.sqrt(fan_in))):
            assert 0.8 * bound < jnp.abs(value[...]).max() <= bound
