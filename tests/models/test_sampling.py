"""Samples of several feature maps, against a loop over points in plain numpy."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models.sampling import sample_levels

SHAPES = ((9, 13), (5, 7), (1, 3))


def reference(values, shapes, locations, weights):
    """Sum over levels, points and the four cells around each point, one number at a time."""
    batch, number, heads, levels, points, _ = locations.shape
    sampled = np.zeros((batch, number, heads, values.shape[-1]))
    starts = np.cumsum([0, *(height * width for height, width in shapes)])
    for b, n, a, level, p in itertools.product(*map(range, (batch, number, heads, levels, points))):
        height, width = shapes[level]
        x, y = locations[b, n, a, level, p] * (width, height) - 0.5
        for i, j in itertools.product((math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)):
            if 0 <= i < height and 0 <= j < width:
                factor = (1 - abs(y - i)) * (1 - abs(x - j)) * weights[b, n, a, level, p]
                sampled[b, n, a] += factor * values[b, starts[level] + i * width + j, a]
    return sampled


def random_inputs(rng, *, shapes=SHAPES, batch=2, number=6, heads=3, points=2, channels=8):
    cells = sum(height * width for height, width in shapes)
    values = rng.normal(size=(batch, cells, heads, channels))
    locations = rng.uniform(-0.3, 1.3, (batch, number, heads, len(shapes), points, 2))  # some are outside
    weights = rng.uniform(size=(batch, number, heads, len(shapes), points))
    return [x.astype(np.float32) for x in (values, locations, weights)]


def test_samples_equal_a_loop_over_points(rng):
    values, locations, weights = random_inputs(rng)
    wanted = reference(values.astype(float), SHAPES, locations.astype(float), weights.astype(float))
    np.testing.assert_allclose(sample_levels(values, SHAPES, locations, weights), wanted, atol=2e-5)


@pytest.mark.parametrize("place", [0.0, 1.0, 0.5 / 13, -1e6, 1e6, 12.5 / 13])
def test_samples_at_borders_and_far_outside_equal_the_loop(rng, place):
    values, locations, weights = random_inputs(rng)
    locations[..., 0] = place
    wanted = reference(values.astype(float), SHAPES, locations.astype(float), weights.astype(float))
    np.testing.assert_allclose(sample_levels(values, SHAPES, locations, weights), wanted, atol=2e-5)


def test_gradients_equal_differences_of_the_loop(rng):
    """The function is linear in values and weights, and between two cells in the locations."""
    shapes = ((5, 7), (2, 3))
    values, locations, weights = random_inputs(rng, shapes=shapes, batch=1, number=2, heads=2, points=2, channels=3)
    size = np.asarray([(width, height) for height, width in shapes])[:, None]
    cell = np.floor(locations * size - 0.5)
    locations = ((cell + rng.uniform(0.1, 0.9, locations.shape) + 0.5) / size).astype(np.float32)  # away from kinks
    factors = rng.normal(size=(1, 2, 2, 3))

    def total(*inputs):
        return (sample_levels(inputs[0], shapes, inputs[1], inputs[2]) * factors.astype(np.float32)).sum()

    gradients = jax.grad(total, argnums=(0, 1, 2))(*map(jnp.asarray, (values, locations, weights)))
    inputs = [x.astype(float) for x in (values, locations, weights)]
    for k, gradient in enumerate(gradients):
        wanted = np.zeros(inputs[k].shape)
        for index in np.ndindex(*inputs[k].shape):
            moved = []
            for step in (-1e-4, 1e-4):
                changed = [x.copy() for x in inputs]
                changed[k][index] += step
                moved.append((reference(changed[0], shapes, *changed[1:]) * factors).sum())
            wanted[index] = (moved[1] - moved[0]) / 2e-4
        np.testing.assert_allclose(gradient, wanted, atol=2e-3, rtol=1e-3)


def test_the_gradient_far_outside_is_zero_and_finite(rng):
    values, locations, weights = map(jnp.asarray, random_inputs(rng))
    gradients = jax.grad(lambda x: sample_levels(values, SHAPES, x, weights).sum())(jnp.full_like(locations, 1e6))
    assert not np.asarray(gradients).any()


def test_bfloat16_values_are_summed_in_float32(rng):
    values, locations, weights = map(jnp.asarray, random_inputs(rng, channels=32))
    rounded = values.astype(jnp.bfloat16)
    wanted = sample_levels(rounded.astype(jnp.float32), SHAPES, locations, weights)
    np.testing.assert_allclose(sample_levels(rounded, SHAPES, locations, weights), wanted, atol=1e-5)
