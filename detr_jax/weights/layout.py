"""The conversion engine: a layout is a table of rules, each of which names a tensor there and its place here.

In the names of rules ``*`` stands for a number, the same number at the same place on both sides:
``transformer.encoder.layers.*.linear1.weight`` becomes ``encoder/layers/*/feed_forward/expand/kernel``.

PyTorch stores a linear layer as [out, in] and a convolution as [out, in, height, width]; here they are
[in, out] and [height, width, in, out].
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from detr_jax.weights.files import WeightsError

Shape = tuple[int, ...]


class Transform(NamedTuple):
    """How a tensor there becomes one here, or several equally shaped ones."""

    dimensions: int
    """Of the tensor there."""
    convert: Callable[[np.ndarray], list[np.ndarray]]
    shape_there: Callable[[Shape], Shape]
    """The shape there that one of ours comes from."""


VECTOR = Transform(1, lambda x: [x], lambda shape: shape)
TABLE = Transform(2, lambda x: [x], lambda shape: shape)
LINEAR = Transform(2, lambda x: [x.T], lambda shape: shape[::-1])
CONVOLUTION = Transform(4, lambda x: [x.transpose(2, 3, 1, 0)], lambda s: (s[3], s[2], s[0], s[1]))
POINTWISE = Transform(4, lambda x: [x.reshape(x.shape[0], -1).T], lambda shape: (*shape[::-1], 1, 1))
"""A 1x1 convolution that is a linear layer here."""
PACKED_LINEAR = Transform(2, lambda x: [part.T for part in _thirds(x)], lambda s: (3 * s[1], s[0]))
PACKED_VECTOR = Transform(1, lambda x: _thirds(x), lambda shape: (3 * shape[0],))
"""Rows of query, then key, then value."""


def _thirds(x: np.ndarray) -> list[np.ndarray]:
    return np.array_split(x, 3)


class Rule(NamedTuple):
    """One kind of tensor: its name there, its path or paths here, and what happens between them."""

    name: str
    paths: tuple[str, ...]
    transform: Transform

    @property
    def pattern(self) -> re.Pattern[str]:
        """Matches the name; its groups are the numbers."""
        return _with_numbers(self.name)

    def name_of(self, path: str) -> str | None:
        """The name there of a path here, None where the rule does not make that path."""
        for template in self.paths:
            if found := _with_numbers(template).fullmatch(path):
                return fill(self.name, found.groups())
        return None


def _with_numbers(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\*", r"(\d+)"))


def fill(template: str, numbers: Sequence[str]) -> str:
    """The template with its stars replaced by numbers, one after another."""
    for number in numbers:
        template = template.replace("*", number, 1)
    return template


def convolution(name: str, path: str) -> list[Rule]:
    """A convolution without bias."""
    return [Rule(f"{name}.weight", (f"{path}/kernel",), CONVOLUTION)]


def batch_norm(name: str, path: str) -> list[Rule]:
    """The four vectors of a batch norm."""
    ours = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
    return [Rule(f"{name}.{there}", (f"{path}/{here}",), VECTOR) for there, here in ours.items()]


def layer_norm(name: str, path: str) -> list[Rule]:
    """Scale and bias of a layer norm."""
    return [Rule(f"{name}.weight", (f"{path}/scale",), VECTOR), Rule(f"{name}.bias", (f"{path}/bias",), VECTOR)]


def linear(name: str, path: str, weight: Transform = LINEAR) -> list[Rule]:
    """A linear layer with bias."""
    return [Rule(f"{name}.weight", (f"{path}/kernel",), weight), Rule(f"{name}.bias", (f"{path}/bias",), VECTOR)]


def packed_attention(name: str, path: str) -> list[Rule]:
    """`torch.nn.MultiheadAttention`: query, key and value in one matrix."""
    parts = [f"{path}/{part}" for part in ("query", "key", "value")]
    return [
        Rule(f"{name}.in_proj_weight", tuple(f"{part}/kernel" for part in parts), PACKED_LINEAR),
        Rule(f"{name}.in_proj_bias", tuple(f"{part}/bias" for part in parts), PACKED_VECTOR),
        *linear(f"{name}.out_proj", f"{path}/output"),
    ]


_LEFTOVER = re.compile(r"(.*\.)?(n_averaged|empty_weight)|(.*\.)?(criterion|\w*metrics?|loss\w*|map)\..*")
"""What training code keeps next to a model: counters, losses, metrics."""

_WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def without_wrappers(name: str) -> str:
    """The name without what PyTorch's wrappers (parallel, compiled, sharded, checkpointed modules) add to it."""
    return _WRAPPERS.sub("", name)


@dataclass(frozen=True)
class Layout:
    """The names that one framework gives to the tensors of a model."""

    kind: str
    rules: tuple[Rule, ...]
    spellings: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement), applied in turn to every name before the rules."""
    ignored: str = r".*\.num_batches_tracked"
    """Names that mean nothing here."""
    aside: str = r"(?!)"
    """Names (respelled) of tensors that are kept as they are for other parts than the detector."""
    contiguous_coco: bool = False
    """81 class outputs are COCO's 80 classes in the order of their ids, then "no object"."""

    def respelled(self, name: str, prefix: str = "") -> str:
        """The name as the rules know it, without ``prefix`` and what wrappers put between its parts."""
        name = without_wrappers(name).removeprefix(prefix)
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Rule]]:
        return [(rule.pattern, rule) for rule in self.rules]

    def rule_of(self, name: str) -> tuple[Rule, tuple[str, ...]] | None:
        """The rule for a respelled name and the paths it leads to, None where there is none."""
        for pattern, rule in self._patterns:
            if found := pattern.fullmatch(name):
                return rule, tuple(fill(path, found.groups()) for path in rule.paths)
        return None

    def name_of(self, path: str, like: Sequence[str] = ()) -> str:
        """The name there of a path here; of several, one that shares the longest beginning with a name in ``like``."""
        names = [name for rule in self.rules if (name := rule.name_of(path))]

        def closeness(name: str) -> int:
            stem = name.split("*")[0].rsplit(".", 2)[0]
            return sum(other.startswith(stem) for other in like)

        return max(names, key=closeness, default=path)


class Claim(NamedTuple):
    """A tensor that a rule knows."""

    rule: Rule
    paths: tuple[str, ...]
    array: np.ndarray
    """As it is there."""


@dataclass
class Sorted:
    """The tensors of a file, sorted by what a layout makes of them."""

    layout: Layout
    prefix: str = ""
    """What all names begin with, before the layout's own."""
    claims: dict[str, Claim] = field(default_factory=dict)
    aside: dict[str, np.ndarray] = field(default_factory=dict)
    """By respelled name."""
    ignored: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    """Without the prefix."""
    unexpected: list[str] = field(default_factory=list)

    def converted(self) -> dict[str, np.ndarray]:
        """Arrays by our path, of all tensors that have the dimensions which their rule wants."""
        arrays: dict[str, np.ndarray] = {}
        for claim in self.claims.values():
            if claim.array.ndim == claim.rule.transform.dimensions and claim.array.dtype == np.float32:
                arrays |= zip(claim.paths, claim.rule.transform.convert(claim.array), strict=True)
        return arrays

    def check(self, expected: Mapping[str, Shape], source: str) -> None:
        """Compares with the shapes by path that a model has.

        Raises:
          WeightsError: something is missing, unexpected or of the wrong shape or type; the message lists it all.
        """
        given: dict[str, str] = {}
        unexpected, wrong = list(self.unexpected), []
        for name, claim in self.claims.items():
            for path in claim.paths:
                given.setdefault(path, name)
            if given[claim.paths[0]] != name:
                unexpected.append(f"{name} {list(claim.array.shape)}, a second time what {given[claim.paths[0]]} is")
            elif claim.paths[0] not in expected:
                unexpected.append(f"{name} {list(claim.array.shape)}")
            else:
                shape = claim.rule.transform.shape_there(expected[claim.paths[0]])
                if claim.array.shape != shape:
                    wrong.append(f"{name} has {list(claim.array.shape)} and must have {list(shape)}")
                elif claim.array.dtype != np.float32:
                    wrong.append(f"{name} holds {claim.array.dtype} and must hold floating point numbers")
        names = [without_wrappers(name).removeprefix(self.prefix) for name in self.claims]
        missing = {self.prefix + self.layout.name_of(path, names): None for path in expected if path not in given}
        parts = [
            f"  {len(lines)} {what}:\n" + "\n".join(f"    {line}" for line in lines)
            for what, lines in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape or type", wrong))
            if lines
        ]
        if parts:
            raise WeightsError(f"{source}:\n" + "\n".join(parts))


def sort_tensors(tensors: Mapping[str, np.ndarray], layout: Layout, prefix: str = "") -> Sorted:
    """Gives every tensor of a file to its rule; the names of all that belong to the model begin with ``prefix``."""
    result = Sorted(layout, prefix)
    for original, array in tensors.items():
        name = layout.respelled(original, prefix)
        if prefix and not without_wrappers(original).startswith(prefix):
            (result.ignored if _LEFTOVER.fullmatch(original) else result.outside).append(original)
        elif re.fullmatch(layout.ignored, name):
            result.ignored.append(original)
        elif re.fullmatch(layout.aside, name):
            result.aside[name] = array
        elif found := layout.rule_of(name):
            result.claims[original] = Claim(*found, array)
        else:
            result.unexpected.append(f"{original} {list(array.shape)}")
    return result
