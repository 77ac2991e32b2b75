"""Checks of what parts of the configuration return, for messages that name the part and not the code that uses it."""

from collections.abc import Sequence
from typing import Any

from detr_jax.config import ConfigError


def described(value: Any) -> str:
    """A returned value in a message: type and shape of an array, otherwise the class."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype} of shape {list(value.shape)}"
    return f"an object of class {type(value).__name__}"


def check_shape(value: Any, shape: Sequence[int], name: str, part: object, dimensions: str) -> None:
    """Checks that a part of the configuration returned an array of this shape.

    Args:
      value: what the part returned.
      shape: the shape that it must have.
      name: the field that holds the part, such as ``loss.terms.giou``.
      part: the part itself.
      dimensions: the names of the dimensions, such as "L, B, Q, T".

    Raises:
      ConfigError: the value is not an array, or has another shape.
    """
    if not hasattr(value, "dtype") or tuple(getattr(value, "shape", ())) != tuple(shape):
        raise ConfigError(
            f"{name} ({type(part).__name__}) returned {described(value)}: it must return an array of shape "
            f"[{dimensions}], here {list(shape)}."
        )
