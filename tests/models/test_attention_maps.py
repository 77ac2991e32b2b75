import jax
import jax.numpy as jnp
import numpy as np

from detr_jax.models import DETR, attention_maps


def _numpy_weights(attention, queries, keys, padding):
    """Softmax of scaled dot products per head, from the definition: [B, A, N, K]."""

    def heads(layer, x):
        projected = np.asarray(x, np.float64) @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
        return projected.reshape(*x.shape[:2], attention.num_heads, -1).transpose(0, 2, 1, 3)

    q, k = heads(attention.query, queries), heads(attention.key, keys)
    scores = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    scores = np.where(padding[:, None, None], -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_maps_are_the_softmax_over_the_image_and_the_outputs_stay_equal(tiny_model, rng, rngs):
    model = DETR(tiny_model(encoder_layers=1, decoder_layers=1), rngs=rngs)
    images = jnp.asarray(rng.normal(size=(2, 64, 96, 3)), jnp.float32)
    sizes = jnp.array([[64, 96], [40, 50]])
    maps = jax.jit(lambda x: attention_maps(model, x, sizes))(images)
    plain = jax.jit(lambda x: model(x, sizes))(images)
    np.testing.assert_array_equal(maps.outputs.logits, plain.logits)
    np.testing.assert_array_equal(maps.outputs.boxes, plain.boxes)

    features = model.features(images, sizes)
    batch, height, width, _ = features.projected.shape
    padding = np.asarray(features.padding_mask).reshape(batch, -1)
    tokens, position = (np.asarray(x).reshape(batch, height * width, -1) for x in (features[0], features[2]))
    own = _numpy_weights(model.encoder.layers[0].self_attention, tokens + position, tokens + position, padding)
    np.testing.assert_allclose(maps.encoder.reshape(own.shape), own, atol=1e-5)

    layer, memory = model.decoder.layers[0], np.asarray(model.encode(features))
    queries = model.object_queries[...][None]
    zeros = jnp.zeros((batch, *queries.shape[1:]))
    x = layer.self_attention_residual(zeros, lambda x: layer.self_attention(x + queries, x + queries, x), None)
    cross = _numpy_weights(layer.cross_attention, x + queries, memory + position, padding)
    np.testing.assert_allclose(maps.decoder.reshape(cross.shape), cross, atol=1e-5)
    np.testing.assert_allclose(maps.decoder.sum(axis=(-1, -2)), 1.0, atol=1e-5)
    np.testing.assert_allclose(maps.encoder.sum(axis=(-1, -2)), 1.0, atol=1e-5)
    assert not np.asarray(maps.decoder)[
        np.broadcast_to(np.asarray(features.padding_mask)[:, None, None], maps.decoder.shape)
    ].any()
    assert type(model.encoder.layers[0].self_attention).__name__ == "MultiHeadAttention"


def test_a_model_without_an_encoder_has_no_encoder_map(tiny_model, rng, rngs):
    model = DETR(tiny_model(encoder_layers=0, decoder_layers=1), rngs=rngs)
    maps = attention_maps(model, jnp.asarray(rng.normal(size=(1, 32, 32, 3)), jnp.float32), jnp.array([[32, 32]]))
    assert maps.encoder is None
    assert maps.decoder.shape[:3] == (1, 4, 7)
