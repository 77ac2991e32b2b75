"""Rules for tensors: the name in a checkpoint, the path of our parameter, and the conversion between the two.

In names and paths ``*`` stands for a number. The numbers of a name are put into its paths in the same order:
``transformer.encoder.layers.*.linear1.weight`` becomes ``encoder/layers/*/feed_forward/expand/kernel``.

PyTorch stores a linear layer as [out, in] and a convolution as [out, in, height, width]. This package stores them as
[in, out] and [height, width, in, out].
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]
"""The shape of a tensor or a parameter."""


class Transform(NamedTuple):
    """The conversion of a stored tensor into one parameter, or into several parameters of the same shape."""

    dimensions: int
    """Number of dimensions of the stored tensor."""
    convert: Callable[[np.ndarray], list[np.ndarray]]
    """Turns the stored tensor into our parameters."""
    stored_shape: Callable[[Shape], Shape]
    """The shape of the stored tensor from the shape of one of our parameters."""


VECTOR = Transform(1, lambda x: [x], lambda shape: shape)
"""A bias, or a vector of a norm. It is stored as in this package."""
TABLE = Transform(2, lambda x: [x], lambda shape: shape)
"""Embeddings [entries, channels]. They are stored as in this package."""
SPLIT_TABLE = Transform(2, lambda x: np.array_split(x, 2, axis=1), lambda shape: (shape[0], 2 * shape[1]))
"""Two tables of embeddings side by side in one."""
LINEAR = Transform(2, lambda x: [x.T], lambda shape: shape[::-1])
"""The kernel of a linear layer."""
CONVOLUTION = Transform(4, lambda x: [x.transpose(2, 3, 1, 0)], lambda s: (s[3], s[2], s[0], s[1]))
"""The kernel of a convolution."""
POINTWISE = Transform(4, lambda x: [x.reshape(x.shape[0], -1).T], lambda shape: (*shape[::-1], 1, 1))
"""A stored 1x1 convolution that is a linear layer in this package."""
PACKED_LINEAR = Transform(2, lambda x: [third.T for third in np.array_split(x, 3)], lambda s: (3 * s[1], s[0]))
"""The rows of query, key and value in one matrix."""
PACKED_VECTOR = Transform(1, lambda x: np.array_split(x, 3), lambda shape: (3 * shape[0],))
"""The biases of query, key and value in one vector."""


class Rule(NamedTuple):
    """The conversion of one kind of tensor."""

    name: str
    """Name in the checkpoint, with ``*`` for numbers."""
    paths: tuple[str, ...]
    """Paths of our parameters, with ``*`` for the same numbers."""
    transform: Transform
    """The conversion."""
    tied: bool = False
    """Whether a parameter may be stored under several names, as for heads that share their weights. All copies must
    hold the same values."""

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches the names of the rule. Its groups are the numbers."""
        return _with_numbers(self.name)

    def name_of(self, path: str) -> str | None:
        """The name in the checkpoint for one of our paths, or None if the rule does not produce that path.

        If the path has fewer numbers than the name (a tied rule), it is the name with the remaining numbers 0.
        """
        for template in self.paths:
            if found := _with_numbers(template).fullmatch(path):
                return fill(self.name, found.groups()).replace("*", "0")
        return None


def _with_numbers(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\*", r"(\d+)"))


def fill(template: str, numbers: Sequence[str]) -> str:
    """The template with its stars replaced by the numbers, one after another."""
    for number in numbers:
        template = template.replace("*", number, 1)
    return template


def convolution(name: str, path: str) -> list[Rule]:
    """Rules of a convolution without bias."""
    return [Rule(f"{name}.weight", (f"{path}/kernel",), CONVOLUTION)]


def batch_norm(name: str, path: str) -> list[Rule]:
    """Rules of the four vectors of a batch norm."""
    leaves = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
    return [Rule(f"{name}.{stored}", (f"{path}/{ours}",), VECTOR) for stored, ours in leaves.items()]


def layer_norm(name: str, path: str) -> list[Rule]:
    """Rules of scale and bias of a layer norm."""
    return [Rule(f"{name}.weight", (f"{path}/scale",), VECTOR), Rule(f"{name}.bias", (f"{path}/bias",), VECTOR)]


def linear(name: str, path: str, weight: Transform = LINEAR) -> list[Rule]:
    """Rules of a linear layer with bias."""
    return [Rule(f"{name}.weight", (f"{path}/kernel",), weight), Rule(f"{name}.bias", (f"{path}/bias",), VECTOR)]


def packed_attention(name: str, path: str) -> list[Rule]:
    """Rules of a `torch.nn.MultiheadAttention`, which stores query, key and value in one matrix."""
    projections = [f"{path}/{projection}" for projection in ("query", "key", "value")]
    return [
        Rule(f"{name}.in_proj_weight", tuple(f"{projection}/kernel" for projection in projections), PACKED_LINEAR),
        Rule(f"{name}.in_proj_bias", tuple(f"{projection}/bias" for projection in projections), PACKED_VECTOR),
        *linear(f"{name}.out_proj", f"{path}/output"),
    ]


def tied(rules: Sequence[Rule]) -> list[Rule]:
    """The same rules for parameters that may be stored under several names (`Rule.tied`)."""
    return [rule._replace(tied=True) for rule in rules]
