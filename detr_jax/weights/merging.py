"""Imported weights as the start of another model's training."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from detr_jax.config import DetectorConfig
from detr_jax.weights.files import WeightsError
from detr_jax.weights.pretrained import ImportedWeights
from detr_jax.weights.trees import by_path, with_leaves
from detr_jax.wording import counted

LOADED, REINITIALISED, DROPPED, MISSING = "loaded", "re-initialised", "dropped", "missing"


class Outcome(NamedTuple):
    """What became of one parameter."""

    path: str
    what: str
    """"loaded"; "re-initialised" (both have it, in different shapes: the model's own initial value stays); "missing"
    (only the model has it: likewise); "dropped" (only the checkpoint has it)."""
    why: str


def merge_pretrained(tree: Any, weights: ImportedWeights, config: DetectorConfig) -> tuple[Any, list[Outcome]]:
    """Puts imported weights into a model that may differ in its heads.

    Args:
      tree: the model's pure tree, whose values stay where nothing was imported.
      weights: from `read_pretrained`; a backbone alone is enough.
      config: the model's configuration.

    Returns:
      The tree with the imported values, and what became of each parameter, in the order of the tree.

    Raises:
      WeightsError: the two differ in more than classes, queries and the number of layers; one sentence a difference.
    """
    _check_compatible(weights, config)
    ours = by_path(tree)
    leaves, outcomes, wrong = dict(ours), [], []
    for path, leaf in ours.items():
        given = weights.params.get(path)
        if given is None:
            why = "the checkpoint holds a backbone alone" if weights.config is None else "the checkpoint has none"
            outcomes.append(Outcome(path, MISSING, why))
        elif given.shape == leaf.shape:
            leaves[path] = np.asarray(given, leaf.dtype)
            outcomes.append(Outcome(path, LOADED, ""))
        elif reason := _reason_to_restart(path, weights.config, config):
            outcomes.append(Outcome(path, REINITIALISED, reason))
        else:
            wrong.append(f"  {path} has {list(given.shape)} in the checkpoint and {list(leaf.shape)} in the model")
    if wrong:
        raise WeightsError(f"{weights.source} does not fit the configured model:\n" + "\n".join(wrong))
    outcomes += [Outcome(path, DROPPED, "the model has none") for path in weights.params if path not in ours]
    outcomes += [Outcome(path, DROPPED, "the model has no mask head") for path in weights.mask_head]
    return with_leaves(tree, leaves), outcomes


def _reason_to_restart(path: str, there: DetectorConfig | None, here: DetectorConfig) -> str | None:
    if there is None:
        return None
    if path.startswith("class_head/") and _width(there) == _width(here):
        return f"{counted(there.num_classes, 'class', 'classes')} in the checkpoint, {here.num_classes} here"
    if path == "object_queries" and _width(there) == _width(here):
        return f"{counted(there.num_queries, 'query', 'queries')} in the checkpoint, {here.num_queries} here"
    return None


def _width(config: DetectorConfig) -> int | None:
    return getattr(config, "hidden_dim", None)


_MUST_AGREE = ("hidden_dim", "num_heads", "feedforward_dim", "pre_norm", "position_embedding")
_BACKBONE_MUST_AGREE = ("block", "blocks", "width", "stem", "norm")


def _check_compatible(weights: ImportedWeights, config: DetectorConfig) -> None:
    """Refuses to load values into a model that computes something else with them."""

    def differences(there: Any, here: Any, names: tuple[str, ...], prefix: str) -> Iterator[str]:
        assert {f.name for f in fields(there)} >= set(names)
        for name in names:
            if getattr(there, name) != getattr(here, name):
                yield (
                    f"  {prefix}{name} is {getattr(there, name)!r} in the checkpoint and {getattr(here, name)!r} in "
                    "the configuration"
                )

    found = [
        f"  model.{name} is {there} in the checkpoint and {here} in the configuration"
        for name, there, here in (
            ("pixel_mean", weights.pixel_mean, config.pixel_mean),
            ("pixel_std", weights.pixel_std, config.pixel_std),
        )
        if not np.allclose(there, here, rtol=1e-5)
    ]
    found += [*differences(weights.backbone, config.backbone, _BACKBONE_MUST_AGREE, "model.backbone.")]
    if weights.config is not None:
        found += differences(weights.config, config, _MUST_AGREE, "model.")
    if found:
        raise WeightsError(f"{weights.source} does not fit the configured model:\n" + "\n".join(found))


def outcome_table(outcomes: list[Outcome]) -> str:
    """What was loaded, re-initialised, missing and dropped, in aligned columns; neighbours of one fate share a line."""

    def group(outcome: Outcome) -> tuple[str, str, str]:
        return outcome.path.split("/")[0].split(".")[0], outcome.what, outcome.why

    rows = [
        (part, counted(len(list(members)), "tensor"), what, why)
        for (part, what, why), members in groupby(sorted(outcomes, key=group), key=group)
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return "\n".join(
        "  ".join((*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3])).rstrip()
        for row in rows
    )
