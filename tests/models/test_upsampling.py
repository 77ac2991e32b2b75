"""The convolution of an upsampled map against the plain form: repeat, cut, mask, convolve."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from detr_jax.models.upsampling import upsampled_conv3x3


def plain(x, kernel, size, valid_sizes):
    """The definition, with a mask [N, H, W, 1] of what is valid."""
    up = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, : size[0], : size[1]]
    inside = jnp.ones((len(x), *size, 1), bool)
    if valid_sizes is not None:
        rows = jnp.arange(size[0])[None, :, None, None] < valid_sizes[:, 0, None, None, None]
        inside = rows & (jnp.arange(size[1])[None, None, :, None] < valid_sizes[:, 1, None, None, None])
    up = jnp.where(inside, up, 0.0)
    dimensions = ("NHWC", "HWIO", "NHWC")
    exact = lax.Precision.HIGHEST
    found = lax.conv_general_dilated(
        up, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=dimensions, precision=exact
    )
    return jnp.where(inside, found, 0.0), inside


@pytest.mark.parametrize("size", [(16, 20), (15, 20), (16, 19), (13, 17)])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("channels", "outputs"), [(128, 64), (16, 8)])
def test_values_and_gradients_are_those_of_the_plain_form(rng, size, padded, channels, outputs):
    number, low = 5, (-(-size[0] // 2), -(-size[1] // 2))
    x = rng.normal(size=(number, *low, channels)).astype(np.float32)
    kernel = (rng.normal(size=(3, 3, channels, outputs)) / np.sqrt(9 * channels)).astype(np.float32)
    valid = None
    if padded:
        valid = np.stack([rng.integers(1, side, number, endpoint=True) for side in size], axis=1)
        x *= np.arange(low[0])[None, :, None, None] < ((valid[:, 0] + 1) // 2)[:, None, None, None]
        x *= np.arange(low[1])[None, None, :, None] < ((valid[:, 1] + 1) // 2)[:, None, None, None]
        valid = jnp.asarray(valid)
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    expected, inside = plain(x, kernel, size, valid)
    weights = jnp.asarray(rng.normal(size=expected.shape).astype(np.float32))

    def ours(x, kernel):
        return jnp.where(inside, upsampled_conv3x3(x, kernel, size, valid), 0.0)

    np.testing.assert_allclose(ours(x, kernel), expected, atol=2e-5)
    of_ours, of_plain = (
        jax.grad(lambda x, kernel, form=form: (form(x, kernel) * weights).sum(), argnums=(0, 1))(x, kernel)
        for form in (ours, lambda x, kernel: plain(x, kernel, size, valid)[0])
    )
    if padded:  # cells at padding are zero always, so their gradient is not used
        cells = jnp.abs(x) > 0
        of_ours, of_plain = ((jnp.where(cells, grads[0], 0.0), grads[1]) for grads in (of_ours, of_plain))
    for found, wanted in zip(of_ours, of_plain, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4 * float(jnp.abs(wanted).max()))


def test_any_batch_and_bfloat16(rng):
    kernel = jnp.asarray(rng.normal(size=(3, 3, 128, 64)), jnp.bfloat16)

    def function(x):
        return upsampled_conv3x3(x, kernel, (16, 20), None)

    (batch,) = jax.export.symbolic_shape("batch")
    exported = jax.export.export(jax.jit(function))(jax.ShapeDtypeStruct((batch, 8, 10, 128), jnp.bfloat16))
    for number in (1, 3):
        x = jnp.asarray(rng.normal(size=(number, 8, 10, 128)), jnp.bfloat16)
        np.testing.assert_array_equal(exported.call(x), function(x))
        assert function(x).dtype == jnp.bfloat16
