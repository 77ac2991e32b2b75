"""Assignment of a file's tensors to the rules of a layout, and the report of all tensors that do not fit the model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from detr_jax.weights.files import WeightsError
from detr_jax.weights.layout import Layout, Shapes, without_wrappers
from detr_jax.weights.rules import Rule, Shape

_LEFTOVER = re.compile(r"(.*\.)?(n_averaged|empty_weight)|(.*\.)?(criterion|\w*metrics?|loss\w*|map)\..*")
"""What training code keeps next to a model: counters, losses, metrics."""


class KnownTensor(NamedTuple):
    """A tensor whose name has a rule."""

    rule: Rule
    """The conversion of the tensor."""
    paths: tuple[str, ...]
    """Paths of our parameters."""
    array: np.ndarray
    """As it is stored."""

    @property
    def is_convertible(self) -> bool:
        """Whether type and number of dimensions are those that the rule converts."""
        return self.array.ndim == self.rule.transform.dimensions and self.array.dtype == np.float32


@dataclass
class SortedTensors:
    """The tensors of a file, sorted by their meaning in a layout. Names are the file's own unless stated otherwise."""

    layout: Layout
    """The layout whose rules know the names."""
    prefix: str = ""
    """The beginning that all names of the model share, before the layout's own names."""
    known: dict[str, KnownTensor] = field(default_factory=dict)
    """Tensors that become parameters."""
    ignored: list[str] = field(default_factory=list)
    """Tensors that the model does not need."""
    without_prefix: list[str] = field(default_factory=list)
    """Tensors whose names do not begin with the prefix."""
    unexpected: list[str] = field(default_factory=list)
    """Names with shapes of tensors that no rule knows."""

    def converted(self) -> dict[str, np.ndarray]:
        """Arrays by our path, from all tensors that can be converted, and what they imply (`Layout.complete`)."""
        arrays: dict[str, np.ndarray] = {}
        for tensor in self.known.values():
            if tensor.is_convertible:
                arrays |= zip(tensor.paths, tensor.rule.transform.convert(tensor.array), strict=True)
        return {**self.layout.complete(arrays), **arrays}

    def check(self, expected: Shapes, title: str) -> None:
        """Compares all tensors with the shapes that a model has.

        Args:
          expected: the model's shapes by our path.
          title: the first line of the error message.

        Raises:
          WeightsError: tensors are missing, unexpected or of the wrong shape or type. The message lists them all.
        """
        first_names: dict[str, str] = {}
        for name, tensor in self.known.items():
            for path in tensor.paths:
                first_names.setdefault(path, name)
        unexpected, wrong = list(self.unexpected), []
        for name, tensor in self.known.items():
            path = tensor.paths[0]
            first_name = first_names[path]
            first = self.known[first_name]
            if name != first_name and not (tensor.rule.tied or first.rule.tied):
                unexpected.append(f"{described(name, tensor.array)}, the same tensor as {first_name} a second time")
            elif path not in expected:
                unexpected.append(described(name, tensor.array))
            elif fault := _shape_fault(tensor, expected[path]):
                wrong.append(f"{name} {fault}")
            elif name != first_name and not np.array_equal(tensor.array, first.array):
                wrong.append(f"{name} has other values than {first_name}, and both must be the same weights")
        found = first_names.keys() | self.converted().keys()
        groups = {
            "missing": self._stored_names([path for path in expected if path not in found]),
            "unexpected": unexpected,
            "of the wrong shape, type or values": wrong,
        }
        blocks = [
            f"  {len(lines)} {what}:\n" + "\n".join(f"    {line}" for line in lines)
            for what, lines in groups.items()
            if lines
        ]
        if blocks:
            raise WeightsError(f"{title}:\n" + "\n".join(blocks))

    def _stored_names(self, paths: list[str]) -> list[str]:
        """The names that the layout gives to the tensors of these paths, each name once."""
        like = [without_wrappers(name).removeprefix(self.prefix) for name in self.known]
        return list(dict.fromkeys(self.prefix + self.layout.name_of(path, like) for path in paths))


def described(name: str, array: np.ndarray) -> str:
    """The name of a tensor with its shape, for messages."""
    return f"{name} {list(array.shape)}"


def _shape_fault(tensor: KnownTensor, expected: Shape) -> str | None:
    """What is wrong with a tensor's shape or type, or None. ``expected`` is the shape of its (first) parameter."""
    shape = tensor.rule.transform.stored_shape(expected)
    if tensor.array.shape != shape:
        return f"has {list(tensor.array.shape)} and must have {list(shape)}"
    if tensor.array.dtype != np.float32:
        return f"holds {tensor.array.dtype} and must hold floating point numbers"
    return None


def sort_tensors(tensors: Mapping[str, np.ndarray], layout: Layout, prefix: str = "") -> SortedTensors:
    """Assigns every tensor of a file to its rule. The names of the model's tensors begin with ``prefix``."""
    result = SortedTensors(layout, prefix)
    for name, array in tensors.items():
        respelled = layout.respell(name, prefix)
        if prefix and not without_wrappers(name).startswith(prefix):
            (result.ignored if _LEFTOVER.fullmatch(name) else result.without_prefix).append(name)
        elif re.fullmatch(layout.ignored, respelled):
            result.ignored.append(name)
        elif found := layout.rule_of(respelled):
            result.known[name] = KnownTensor(*found, array)
        else:
            result.unexpected.append(described(name, array))
    return result
