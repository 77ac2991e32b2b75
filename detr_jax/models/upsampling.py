"""A 3x3 convolution of a map that is upsampled by nearest neighbours, computed on the map before the upsampling.

Upsampling repeats every row and column, so a 3x3 window of the result sees only 2x2 cells. Four kernels of 2x2, one for
each position of the window, replace the 3x3 kernel: 16 products per cell instead of 36.

Dimensions: ``N`` maps, ``h, w`` cells, ``H, W`` cells after the upsampling, ``C`` input and ``O`` output channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The weights of the two cells of a window (row) in the three products of the kernel (column), for the first and the
# second of the two positions that a cell has after the upsampling.
_CELLS_OF_TAPS = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)


def upsampled_conv3x3(
    x: jax.Array, kernel: jax.Array, size: tuple[int, int], valid_sizes: jax.Array | None
) -> jax.Array:
    """The convolution of the upsampled map, padded by one zero on every side, without bias.

    Args:
      x: [N, h, w, C], zero outside of the valid cells.
      kernel: [3, 3, C, O], of the same dtype.
      size: (H, W), with h = ceil(H / 2) and w = ceil(W / 2). The upsampled map is cut to it.
      valid_sizes: [N, 2] int, valid (height, width) of the upsampled map, which is zero elsewhere. None: all of it.

    Returns:
      [N, H, W, O]. Its values outside of ``valid_sizes`` have no meaning.
    """
    out = _phases(x, kernel)[:, : size[0], : size[1]]
    if valid_sizes is None:
        if not _may_be_odd(size):
            return out
        valid_sizes = jnp.broadcast_to(jnp.stack([jnp.asarray(side) for side in size])[None], (x.shape[0], 2))
    return out - _beyond_odd_sizes(x, kernel, out.shape, valid_sizes)


def _may_be_odd(size: tuple[int, int]) -> bool:
    """Whether a side is odd, or symbolic and not known to be even."""
    return any(not isinstance(side, int) or side % 2 for side in size)


@jax.custom_vjp
def _phases(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of the upsampled map, without a cut: [N, 2 h, 2 w, O]."""
    return _as_convolution(x, kernel)


def _keep_inputs(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _as_convolution(x, kernel), (x, kernel)


def _gradients(inputs: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """XLA for CPUs takes up to 60 times longer for the gradients of a convolution of even size than of a product."""

    def of(form: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
        return lambda x, kernel, gradient: jax.vjp(form, x, kernel)[1](gradient)

    found: tuple[jax.Array, jax.Array] = lax.platform_dependent(
        *inputs, gradient, cpu=of(_as_product), default=of(_as_convolution)
    )
    return found


_phases.defvjp(_keep_inputs, _gradients)


def _as_convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
    channels = x.shape[3]
    windows = lax.conv_general_dilated(
        x,
        _kernels(kernel).reshape(2, 2, channels, -1),
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return _interleaved(windows)


def _as_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    number, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    cells = [padded[:, a : a + height + 1, b : b + width + 1] for a in (0, 1) for b in (0, 1)]
    products = jnp.concatenate(cells, axis=3).reshape(-1, 4 * channels) @ _kernels(kernel).reshape(4 * channels, -1)
    return _interleaved(products.reshape(number, height + 1, width + 1, -1))


def _kernels(kernel: jax.Array) -> jax.Array:
    """The kernels [2, 2, C, 2, 2, O] of 2x2 cells for the two positions of a row and of a column."""
    cells = jnp.asarray(_CELLS_OF_TAPS, kernel.dtype)
    return jnp.einsum("pay,qbx,yxco->abcpqo", cells, cells, kernel, precision=lax.Precision.HIGHEST)


def _interleaved(windows: jax.Array) -> jax.Array:
    """Windows [N, h + 1, w + 1, 4 O], whose channels are four positions, as a map [N, 2 h, 2 w, O]."""
    number, height, width = windows.shape[0], windows.shape[1] - 1, windows.shape[2] - 1
    places = windows.reshape(*windows.shape[:3], 2, 2, -1)
    rows = [
        jnp.stack([places[:, p : p + height, q : q + width, p, q] for q in (0, 1)], axis=3)  # [N, h, w, 2, O]
        for p in (0, 1)
    ]
    return jnp.stack(rows, axis=2).reshape(number, 2 * height, 2 * width, -1)


def _beyond_odd_sizes(x: jax.Array, kernel: jax.Array, shape: tuple, valid_sizes: jax.Array) -> jax.Array:
    """The part of the convolution that comes from the row and the column just outside of odd valid sizes.

    The upsampling repeats the last row of an odd size once too often, and so the last column. Only the last valid row
    and column of the result see them.
    """
    _, height, width, _ = shape
    rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
    valid_rows, valid_columns = valid_sizes[:, :1], valid_sizes[:, 1:]

    def last(axis: int, valid: jax.Array) -> jax.Array:
        index = jnp.maximum((valid + 1) // 2 - 1, 0)
        index = index[:, :, None, None] if axis == 1 else index[:, None, :, None]
        return jnp.take_along_axis(x, index, axis=axis).squeeze(axis)

    below = jnp.repeat(last(1, valid_rows), 2, axis=1)  # [N, 2 w, C]
    beside = jnp.repeat(last(2, valid_columns), 2, axis=1)[:, :height]  # [N, H, C]
    beside = jnp.where((rows < valid_rows)[..., None], beside, jnp.zeros((), x.dtype))
    from_below = _convolve_line(below, kernel[2])[:, :width]
    from_beside = _convolve_line(beside, kernel[:, 2])
    at_row = ((rows == valid_rows - 1) & (valid_rows % 2 == 1))[:, :, None, None]
    at_column = ((columns == valid_columns - 1) & (valid_columns % 2 == 1))[:, None, :, None]
    zero = jnp.zeros((), x.dtype)
    return jnp.where(at_row, from_below[:, None], zero) + jnp.where(at_column, from_beside[:, :, None], zero)


def _convolve_line(line: jax.Array, taps: jax.Array) -> jax.Array:
    """A line [N, n, C] convolved with three taps [3, C, O], padded by one zero at both ends."""
    length = line.shape[1]
    padded = jnp.pad(line, ((0, 0), (1, 1), (0, 0)))
    return sum((padded[:, t : t + length] @ taps[t] for t in range(3)), jnp.zeros((), line.dtype))
