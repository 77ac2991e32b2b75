"""Rematerialization: the backward pass computes the inner values of a layer again.

This saves memory and costs time (Chen et al., 2016, arXiv:1604.06174).
"""

from collections.abc import Callable
from typing import Any

from flax import nnx


def recomputed(layer: Callable) -> Callable:
    """A layer (an `nnx.Module`) for which the forward pass stores only the inputs.

    The backward pass runs the layer a second time with the same random numbers, so values and gradients are the same.
    Without a backward pass, nothing changes.
    """

    def call(*inputs: Any, **options: Any) -> Any:
        return nnx.remat(_call)(layer, inputs, options)

    return call


def _call(layer: Callable, inputs: tuple, options: dict[str, Any]) -> Any:
    return layer(*inputs, **options)
