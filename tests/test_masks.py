"""Masks as bits, upsampled logits, and the choice of pixels, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.masks import (
    nearest_centers,
    nearest_pixels,
    pack_masks,
    pack_on_device,
    sample_logits,
    unpack_masks,
    unpack_on_device,
    upsample,
)


@pytest.mark.parametrize("shape", [(3, 16, 20), (2, 4, 13, 9), (0, 8, 8), (1, 1, 1)])
def test_bits_hold_every_pixel(shape, rng):
    masks = rng.random(shape) < 0.5
    bits = pack_masks(masks)
    assert bits.shape == (*shape[:-2], -(-shape[-2] // 8), shape[-1])
    np.testing.assert_array_equal(unpack_masks(bits, shape[-2]), masks)
    np.testing.assert_array_equal(jax.jit(pack_on_device)(jnp.asarray(masks)), bits)
    unpacked = jax.jit(unpack_on_device)(jnp.asarray(bits))
    np.testing.assert_array_equal(unpacked[..., : shape[-2], :], masks)
    assert not np.any(unpacked[..., shape[-2] :, :])


def interpolated(logits, size):
    """Bilinear interpolation with half-pixel centres, pixel by pixel."""
    found = np.zeros(size)
    for (i, j), _ in np.ndenumerate(found):
        value = 0.0
        places = [
            np.clip((k + 0.5) * cells / pixels - 0.5, 0, cells - 1)
            for k, cells, pixels in zip((i, j), logits.shape, size, strict=True)
        ]
        low = [int(place) for place in places]
        for a in (0, 1):
            for b in (0, 1):
                row, column = min(low[0] + a, logits.shape[0] - 1), min(low[1] + b, logits.shape[1] - 1)
                weight = [
                    1 - (place - x) if not k else place - x for place, x, k in zip(places, low, (a, b), strict=True)
                ]
                value += weight[0] * weight[1] * logits[row, column]
        found[i, j] = value
    return found


def test_upsampling_is_bilinear_between_the_valid_parts(rng):
    logits = rng.normal(size=(2, 3, 12, 15)).astype(np.float32)
    cells, pixels = np.array([(12, 15), (7, 9)]), np.array([(48, 60), (26, 33)])
    found = np.asarray(upsample(jnp.asarray(logits), (48, 60), jnp.asarray(cells), jnp.asarray(pixels)))
    for of_image, out, (rows, columns), size in zip(logits, found, cells, pixels.tolist(), strict=True):
        for one, mask in zip(of_image, out, strict=True):
            expected = interpolated(one[:rows, :columns], size)
            np.testing.assert_allclose(mask[: size[0], : size[1]], expected, atol=1e-5)
            everywhere = sample_logits(one[:rows, :columns], tuple(size), *map(np.arange, size))
            np.testing.assert_allclose(everywhere, expected, atol=1e-5)


def test_chosen_pixels_are_those_of_the_whole(rng):
    logits = rng.normal(size=(9, 14)).astype(np.float32)
    whole = sample_logits(logits, (35, 54), np.arange(35), np.arange(54))
    rows, columns = nearest_pixels(35, 50), nearest_centers(54, 21)
    np.testing.assert_array_equal(sample_logits(logits, (35, 54), rows, columns), whole[np.ix_(rows, columns)])


@pytest.mark.parametrize(("old", "new"), [(10, 25), (25, 10), (7, 7), (800, 427), (1, 5)])
def test_nearest_pixels_and_centres(old, new):
    assert nearest_pixels(old, new).tolist() == [int(np.floor(i * old / new + 1e-9)) for i in range(new)]
    assert nearest_centers(old, new).tolist() == [int(np.floor((i + 0.5) * old / new + 1e-9)) for i in range(new)]
