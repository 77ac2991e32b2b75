"""Fast forms of convolutions against sums in float64, and where they are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models.convolution import convolve
from detr_jax.models.winograd import winograd_conv3x3


def windows(x):
    """The cells [B, H, W, 3, 3, C] under a 3x3 kernel at each place of x [B, H, W, C], zero around it."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)


@pytest.mark.parametrize("height", [1, 3, 4, 5, 8, 30])
def test_winograd_is_the_sum_over_the_window(rng, height):
    x, kernel = rng.normal(size=(2, height, 7, 40)), rng.normal(size=(3, 3, 40, 6))
    found = winograd_conv3x3(x.astype(np.float32), kernel.astype(np.float32))
    expected = np.einsum("bhwijc,ijco->bhwo", windows(x), kernel)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-5 * expected.std())


@pytest.mark.parametrize("height", [4, 10])
def test_gradients_of_winograd_are_those_of_the_sum(rng, height):
    x, kernel = rng.normal(size=(2, height, 7, 5)), rng.normal(size=(3, 3, 5, 6))
    gradient = rng.normal(size=(2, height, 7, 6))
    _, pull_back = jax.vjp(winograd_conv3x3, x.astype(np.float32), kernel.astype(np.float32))
    of_x, of_kernel = pull_back(gradient.astype(np.float32))
    expected = np.einsum("bhwijo,ijco->bhwc", windows(gradient)[:, :, :, ::-1, ::-1], kernel)
    np.testing.assert_allclose(of_x, expected, atol=1e-5 * expected.std())
    expected = np.einsum("bhwijc,bhwo->ijco", windows(x), gradient)
    np.testing.assert_allclose(of_kernel, expected, atol=1e-5 * expected.std())


def test_zeros_below_an_image_do_not_change_it(rng):
    x = rng.normal(size=(1, 17, 9, 128)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 128, 128)).astype(np.float32)
    taller = np.pad(x, ((0, 0), (0, 15), (0, 0), (0, 0)))
    expected = convolve(x, kernel)
    np.testing.assert_allclose(convolve(taller, kernel)[:, :17], expected, atol=2e-5 * expected.std())


def test_cpus_multiply_half_as_often_where_maps_are_large_and_channels_many():
    def multiplications(height, channels, dtype="float32"):
        """By the program before XLA rewrites it, as a share of the plain convolution's."""
        x = jax.ShapeDtypeStruct((1, height, 32, channels), dtype)
        kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), dtype)
        plain = 2 * 9 * channels**2 * height * 32
        return jax.jit(convolve).lower(x, kernel).cost_analysis()["flops"] / plain

    assert 0.45 < multiplications(32, 512) < 0.56
    assert multiplications(4, 512) > 0.8
    assert multiplications(32, 64) > 0.8
    assert multiplications(32, 512, "bfloat16") > 0.8


def test_gpus_run_their_librarys_convolution():
    x, kernel = jax.ShapeDtypeStruct((1, 32, 32, 128), "float32"), jax.ShapeDtypeStruct((3, 3, 128, 128), "float32")
    convolutions = {
        platform: jax.jit(convolve).trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    }
    assert convolutions["cuda"].count("stablehlo.convolution") == 1
    assert convolutions["cpu"].count("stablehlo.convolution") == 6
