"""Convolutions with the padding of PyTorch's models, each computed in the fastest known form.

Dimensions: ``B`` batch, ``H`` and ``W`` height and width of the feature map, ``C`` input and ``O`` output channels.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from detr_jax.models.winograd import winograd_conv3x3, winograd_is_faster


def convolve(x: jax.Array, kernel: jax.Array, *, stride: int = 1, dilation: int = 1) -> jax.Array:
    """A convolution without bias, padded by (K - 1) / 2 * dilation zeros on every side.

    Args:
      x: [B, H, W, C].
      kernel: [K, K, C, O] of the same dtype. K is odd.

    Returns:
      [B, ceil(H / stride), ceil(W / stride), O].
    """
    size = len(kernel)
    if size == 1:
        return _product(x, kernel, stride)
    plain = functools.partial(_plain, stride=stride, dilation=dilation)
    on_cpu: Callable[[jax.Array, jax.Array], jax.Array] = plain
    if dilation == 1 and x.dtype == jnp.float32:
        if size == 3 and stride == 1 and winograd_is_faster(x.shape, kernel.shape):
            on_cpu = winograd_conv3x3
        elif size == 7 and stride == 2 and x.shape[3] == 3 and x.shape[2] % 2 == 0:
            on_cpu = _of_column_pairs
    return plain(x, kernel) if on_cpu is plain else lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)


def _plain(x: jax.Array, kernel: jax.Array, *, stride: int, dilation: int) -> jax.Array:
    pad = (len(kernel) - 1) // 2 * dilation
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _product(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A 1x1 convolution as a matrix product. On the CPU, its backward pass is much faster than a convolution's."""
    if stride > 1:
        # XLA for GPUs can crash if it fuses a strided slice into a product (openxla/xla#47381)
        x = lax.optimization_barrier(x[:, ::stride, ::stride])
    # The product has two dimensions. With more, XLA for CPUs computes the kernel's gradient slowly.
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def _of_column_pairs(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The stem's 7x7 convolution of stride 2. Two columns of three channels are treated as one column of six channels.

    XLA for CPUs computes convolutions of few channels on one core. It uses all cores if an even kernel has the same
    padding on both sides. With this padding, one column too many is computed at the right, and it is cut off.
    """
    batch, height, width, channels = images.shape
    pairs = images.reshape(batch, height, width // 2, 2 * channels)
    kernel = jnp.pad(kernel, ((0, 0), (1, 0), (0, 0), (0, 0))).reshape(7, 4, 2 * channels, -1)
    wider = lax.conv_general_dilated(
        pairs, kernel, (2, 1), ((3, 3), (2, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return wider[:, :, : width // 2]
