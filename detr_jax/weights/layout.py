"""`Layout`: everything that differs between the checkpoints of two frameworks, or of two families of detectors.

A new framework or family is a new `Layout`. Entering it in `detr_jax.weights.layouts.LAYOUTS`, or giving it to
`read_pretrained` as one of ``layouts``, makes its checkpoints readable.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detr_jax.config import DetectorConfig
from detr_jax.weights.files import TensorFile
from detr_jax.weights.metadata import Metadata
from detr_jax.weights.rules import Rule, Shape, fill

Shapes = Mapping[str, Shape]
"""Shapes by our path."""

_WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


def without_wrappers(name: str) -> str:
    """The name without the words that PyTorch's wrappers add (parallel, compiled, sharded, checkpointed modules)."""
    return _WRAPPERS.sub("", name)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the caller of `read_pretrained` states about the model, because tensors do not show it."""

    dilation: bool = False
    """The model is a DC5 model."""
    mask_padding: bool = True
    """Value for the configuration."""
    num_heads: int | None = None
    """Attention heads. None: the number in the metadata, or else the configuration's default."""


@dataclass(frozen=True, kw_only=True)
class ConvertedModel:
    """A model after the conversion of its tensors."""

    config: DetectorConfig
    """The inferred configuration, with the metadata's normalisation."""
    params: Mapping[str, np.ndarray]
    """Float32 arrays by our path."""
    class_names: Mapping[int, str]
    """Class name by label, empty if unknown."""
    stuff_labels: frozenset[int] = frozenset()
    """Labels of the classes that are no things, such as sky. Panoptic models have them."""
    notes: tuple[str, ...] = ()
    """Sentences about what was changed."""


def _always(_: TensorFile) -> bool:
    return True


def _no_metadata(_: TensorFile) -> Metadata:
    return Metadata()


def _no_faults(_: DetectorConfig) -> Iterable[str]:
    return ()


def _nothing(_: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    return {}


def _unchanged(model: ConvertedModel, _: Metadata) -> ConvertedModel:
    return model


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one framework stores one family of models."""

    kind: str
    """Name of the layout, such as "facebook". It is `ImportedWeights.kind` and appears in messages."""
    rules: tuple[Rule, ...]
    """The conversion of each tensor."""
    infer_config: Callable[[Shapes, Metadata, Options], DetectorConfig]
    """The configuration of the model whose converted tensors have these shapes. If sizes contradict each other the most
    frequent one counts, so that the comparison of all shapes with the model's shapes then lists the few wrong tensors.
    ``pixel_mean`` and ``pixel_std`` need not be set, because `read_pretrained` takes them from the metadata."""
    backbone_only: bool = False
    """The checkpoint holds only a backbone. All paths of its rules begin with ``backbone/``. `infer_config` returns a
    detector with that backbone and default values for the rest."""
    marks: tuple[str, ...] = ()
    """Parts of names that show the family, such as "sampling_offsets" for Deformable DETR. A file is read by this
    layout only if its names hold all marks of this layout and no marks of other families
    (`detr_jax.weights.recognition`)."""
    fits: Callable[[TensorFile], bool] = _always
    """Whether this layout is meant for a file whose names hold its marks. If the same names mean different parameters
    in different models of a family, each meaning is a layout, such as Deformable DETR with one head and with a head
    per layer."""
    spellings: tuple[tuple[str, str], ...] = ()
    """(regular expression, replacement) pairs. They are applied in turn to every name before the rules."""
    ignored: str = r".*\.num_batches_tracked"
    """Regular expression for names of tensors that the model does not need."""
    read_metadata: Callable[[TensorFile], Metadata] = _no_metadata
    """What the files say next to the tensors. What cannot be modelled becomes one of `Metadata.faults`."""
    check: Callable[[DetectorConfig], Iterable[str]] = _no_faults
    """Sentences about a configuration that cannot be built, or that this framework computes differently."""
    complete: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]] = _nothing
    """Parameters by our path that the converted tensors, given by our path, imply: biases that are zero, or copies of
    others. They count only if the file does not store them."""
    finish: Callable[[ConvertedModel, Metadata], ConvertedModel] = _unchanged
    """Changes to the checked and converted model, such as another order of channels or classes
    (`detr_jax.weights.finishing`)."""

    def respell(self, name: str, prefix: str = "") -> str:
        """The name as the rules know it, without ``prefix`` and without the words of wrappers."""
        name = without_wrappers(name).removeprefix(prefix)
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Rule]]:
        return [(rule.pattern, rule) for rule in self.rules]

    def rule_of(self, name: str) -> tuple[Rule, tuple[str, ...]] | None:
        """The rule for a respelled name and the paths of its parameters, or None if no rule knows the name."""
        for pattern, rule in self._patterns:
            if found := pattern.fullmatch(name):
                return rule, tuple(fill(path, found.groups()) for path in rule.paths)
        return None

    def name_of(self, path: str, like: Sequence[str] = ()) -> str:
        """The name in the checkpoint for one of our paths.

        If several rules produce the path, the name that shares its beginning with the most names in ``like`` is taken.
        """
        names = [name for rule in self.rules if (name := rule.name_of(path))]

        def closeness(name: str) -> int:
            stem = name.rsplit(".", 2)[0]
            return sum(other.startswith(stem) for other in like)

        return max(names, key=closeness, default=path)
