"""The recorded sampling points, against their definition."""

import jax
import numpy as np

from detr_jax.testing import tiny_deformable_config


def test_points_are_those_of_the_definition_and_the_outputs_stay_equal(rng, rngs):
    model = tiny_deformable_config(decoder_layers=1, dropout=0.0).model.build(rngs=rngs)
    attention = model.decoder.layers[0].cross_attention
    attention.sampling_offsets.kernel[...] = rng.normal(size=(16, 24)).astype(np.float32)
    attention.attention_weights.kernel[...] = rng.normal(size=(16, 12)).astype(np.float32)
    images, sizes = rng.normal(size=(2, 32, 48, 3)).astype(np.float32), np.array([[32, 48], [20, 33]], np.int32)

    points = jax.jit(lambda x: model.sampling_points(x, sizes))(images)
    plain = jax.jit(lambda x: model(x, sizes))(images)
    np.testing.assert_array_equal(points.outputs.logits, plain.logits)
    np.testing.assert_array_equal(points.outputs.boxes, plain.boxes)

    layer, start = model.decoder.layers[0], model.queries(2)
    placed = start.content + start.position
    x = layer.self_attention_residual(start.content, lambda x: layer.self_attention(placed, placed, x), None)
    query = np.asarray(x + start.position, np.float64)
    offsets = query @ np.asarray(attention.sampling_offsets.kernel[...]) + np.asarray(attention.sampling_offsets.bias)
    offsets = offsets.reshape(2, 6, 2, 3, 2, 2)  # images, queries, heads, levels, points, (x, y)
    cells = -(-sizes // np.array([2, 4, 8])[:, None, None])  # levels, images, (height, width)
    reference = np.asarray(start.reference)[:, :, None, None, None]
    wanted = reference + offsets / cells.transpose(1, 0, 2)[:, None, None, :, None, ::-1]
    np.testing.assert_allclose(points.places, wanted, atol=1e-4)

    scores = query @ np.asarray(attention.attention_weights.kernel[...])
    scores = np.exp(scores).reshape(2, 6, 2, 6)
    wanted = (scores / scores.sum(-1, keepdims=True)).reshape(2, 6, 2, 3, 2)
    np.testing.assert_allclose(points.weights, wanted, atol=1e-4)
