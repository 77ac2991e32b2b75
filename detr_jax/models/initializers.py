"""Initial values of the original's PyTorch layers (Flax's defaults differ)."""

import math

import jax
from flax import nnx

Initializer = nnx.initializers.Initializer


def uniform(bound: float) -> Initializer:
    """Uniform in -bound..bound."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = "float32") -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def fan_in_uniform(fan_in: int) -> Initializer:
    """Uniform in +-1/sqrt(fan_in): what a PyTorch linear or convolution starts with, weight and bias alike."""
    return uniform(1.0 / math.sqrt(fan_in))


def xavier_uniform(fan_in: int | None = None, fan_out: int | None = None) -> Initializer:
    """Uniform in +-sqrt(6 / (fan_in + fan_out)) for a [fan_in, fan_out] kernel (Glorot and Bengio, 2010).

    The fans are the kernel's own unless given, as they are for a slice of a larger packed matrix.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = "float32") -> jax.Array:
        fans = (fan_in or shape[0]) + (fan_out or shape[1])
        return uniform(math.sqrt(6.0 / fans))(key, shape, dtype)

    return init
