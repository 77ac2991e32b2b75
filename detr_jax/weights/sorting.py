"""Assignment of a file's tensors to the rules of a layout, and the report of all tensors that do not fit the model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from detr_jax.weights.files import WeightsError
from detr_jax.weights.layout import Layout, Shapes, without_wrappers
from detr_jax.weights.rules import Rule

_LEFTOVER = re.compile(r"(.*\.)?(n_averaged|empty_weight)|(.*\.)?(criterion|\w*metrics?|loss\w*|map)\..*")
"""What training code keeps next to a model: counters, losses, metrics."""


class KnownTensor(NamedTuple):
    """A tensor whose name has a rule."""

    rule: Rule
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
    prefix: str = ""
    """The beginning that all names of the model share, before the layout's own names."""
    known: dict[str, KnownTensor] = field(default_factory=dict)
    aside: dict[str, np.ndarray] = field(default_factory=dict)
    """Tensors of a mask head by respelled name."""
    ignored: list[str] = field(default_factory=list)
    without_prefix: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    """Names with shapes."""

    def converted(self) -> dict[str, np.ndarray]:
        """Arrays by our path, from all tensors that can be converted."""
        arrays: dict[str, np.ndarray] = {}
        for tensor in self.known.values():
            if tensor.is_convertible:
                arrays |= zip(tensor.paths, tensor.rule.transform.convert(tensor.array), strict=True)
        return arrays

    def check(self, expected: Shapes, title: str) -> None:
        """Compares all tensors with the shapes that a model has.

        Args:
          expected: the model's shapes by our path.
          title: the first line of the error message.

        Raises:
          WeightsError: tensors are missing, unexpected or of the wrong shape or type. The message lists them all.
        """
        first: dict[str, str] = {}  # the first name that gives a path
        unexpected, wrong = list(self.unexpected), []
        for name, tensor in self.known.items():
            for path in tensor.paths:
                first.setdefault(path, name)
            if tensor.paths[0] not in expected:
                unexpected.append(f"{name} {list(tensor.array.shape)}")
            elif fault := _shape_fault(tensor, expected):
                wrong.append(f"{name} {fault}")
            elif (other := first[tensor.paths[0]]) != name:
                if not tensor.rule.tied and not self.known[other].rule.tied:
                    unexpected.append(f"{name} {list(tensor.array.shape)}, the same tensor as {other} a second time")
                elif not np.array_equal(tensor.array, self.known[other].array):
                    wrong.append(f"{name} has other values than {other}, and both must be the same weights")
        groups = {
            "missing": self._missing([path for path in expected if path not in first]),
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

    def _missing(self, paths: list[str]) -> list[str]:
        """Names in the checkpoint for paths that no tensor gives, each name once."""
        names = [without_wrappers(name).removeprefix(self.prefix) for name in self.known]
        return list(dict.fromkeys(self.prefix + self.layout.name_of(path, names) for path in paths))


def _shape_fault(tensor: KnownTensor, expected: Shapes) -> str | None:
    """What is wrong with a tensor's shape or type, or None if nothing is."""
    shape = tensor.rule.transform.stored_shape(expected[tensor.paths[0]])
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
        elif re.fullmatch(layout.aside, respelled):
            result.aside[respelled] = array
        elif found := layout.rule_of(respelled):
            result.known[name] = KnownTensor(*found, array)
        else:
            result.unexpected.append(f"{name} {list(array.shape)}")
    return result
