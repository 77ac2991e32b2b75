"""Position embeddings against their definition, cell by cell."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models import LearnedPositionEmbedding, sine_position_embedding
from detr_jax.models.positions import LEARNED_CELLS


def mask_of(sizes, height, width):
    """[B, height, width], True beyond each (height, width) of ``sizes``."""
    mask = np.ones((len(sizes), height, width), bool)
    for image, (h, w) in enumerate(sizes):
        mask[image, :h, :w] = False
    return mask


def sine_by_definition(place, of, half):
    """Channels of the ``place``-th (from 1) of ``of`` valid cells along one axis."""
    angle = place / (of + 1e-6) * 2 * math.pi
    channels = []
    for i in range(half):
        scaled = angle / 10000 ** (2 * (i // 2) / half)
        channels.append(math.sin(scaled) if i % 2 == 0 else math.cos(scaled))
    return channels


def test_sine_embedding_codes_y_then_x_of_the_valid_region(rng):
    height, width, dim = 7, 9, 16
    sizes = [(7, 9), *zip(rng.integers(1, 8, 2), rng.integers(1, 10, 2), strict=True)]
    embedding = sine_position_embedding(jnp.asarray(mask_of(sizes, height, width)), dim)
    assert embedding.dtype == jnp.float32
    for image, (h, w) in enumerate(sizes):
        for y, x in np.ndindex(h, w):
            expected = sine_by_definition(y + 1, h, dim // 2) + sine_by_definition(x + 1, w, dim // 2)
            np.testing.assert_allclose(embedding[image, y, x], expected, atol=1e-5)


def test_sine_embedding_is_finite_where_an_image_is_all_padding():
    assert np.isfinite(sine_position_embedding(jnp.ones((1, 3, 4), bool), 8)).all()


def test_sine_embedding_does_not_depend_on_the_amount_of_padding(rng):
    size = tuple(rng.integers(2, 6, 2))
    small, large = (sine_position_embedding(jnp.asarray(mask_of([size], n, n)), 12) for n in (6, 11))
    np.testing.assert_allclose(small[0, : size[0], : size[1]], large[0, : size[0], : size[1]], atol=1e-6)


def test_learned_embedding_codes_x_then_y(rngs):
    height, width, dim = 5, 8, 12
    module = LearnedPositionEmbedding(dim, rngs=rngs)
    embedding = module(jnp.zeros((2, height, width), bool))
    assert embedding.shape == (2, height, width, dim)
    for y, x in np.ndindex(height, width):
        expected = np.concatenate([module.columns[...][x], module.rows[...][y]])
        np.testing.assert_array_equal(embedding[:, y, x], [expected, expected])


def test_learned_embedding_starts_uniform_in_0_to_1(rngs):
    module = LearnedPositionEmbedding(64, rngs=rngs)
    for table in (module.columns[...], module.rows[...]):
        assert table.shape == (LEARNED_CELLS, 32)
        assert table.min() >= 0
        assert table.max() < 1
        assert 0.45 < table.mean() < 0.55


@pytest.mark.parametrize(("height", "width"), [(51, 4), (4, 51)])
def test_learned_embedding_refuses_more_cells_than_it_has(rngs, height, width):
    module = LearnedPositionEmbedding(8, rngs=rngs)
    assert module(jnp.zeros((1, 50, 50), bool)).shape == (1, 50, 50, 8)
    with pytest.raises(ValueError, match=f"{height} x {width}.*model.position_embedding='sine'"):
        module(jnp.zeros((1, height, width), bool))
