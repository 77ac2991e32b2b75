"""Initialisers of the original's PyTorch layers. Flax has other defaults."""

import math

import jax
from flax import nnx

Initializer = nnx.initializers.Initializer


def uniform(bound: float) -> Initializer:
    """Uniform between -bound and bound."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = "float32") -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def fan_in_uniform(fan_in: int) -> Initializer:
    """Uniform between -1/sqrt(fan_in) and 1/sqrt(fan_in).

    This is PyTorch's default for the weights and biases of linear and convolution layers.
    """
    return uniform(1.0 / math.sqrt(fan_in))


def xavier_uniform(fan_in: int | None = None, fan_out: int | None = None) -> Initializer:
    """Uniform between -b and b with b = sqrt(6 / (fan_in + fan_out)), for a [fan_in, fan_out] kernel.

    By default the fans are the shape of the kernel. Give them for a kernel that is a slice of a larger packed matrix.

    Source: Glorot and Bengio (2010).
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = "float32") -> jax.Array:
        fans = (fan_in or shape[0]) + (fan_out or shape[1])
        return uniform(math.sqrt(6.0 / fans))(key, shape, dtype)

    return init
