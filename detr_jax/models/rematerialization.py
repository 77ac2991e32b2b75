"""Memory for time: layers whose inner values the backward pass computes again (Chen et al., 2016, arXiv:1604.06174)."""

from collections.abc import Callable
from typing import Any

from flax import nnx


def recomputed(layer: Callable) -> Callable:
    """A layer (an `nnx.Module`) of which the forward pass keeps the inputs alone for the backward pass.

    The backward pass runs it a second time, with the same random numbers, so values and gradients are the same.
    Without a backward pass nothing changes.
    """

    def call(*inputs: Any, **options: Any) -> Any:
        return nnx.remat(_call)(layer, inputs, options)

    return call


def _call(layer: Callable, inputs: tuple, options: dict[str, Any]) -> Any:
    return layer(*inputs, **options)
