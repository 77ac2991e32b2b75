"""`merge_pretrained`: imported weights as the initial values of a model, and the table of what was loaded.

The detector's configuration names the fields in which the two models may differ: ``free_fields`` and
``resizing_fields``.
"""

import re
from collections.abc import Iterable, Iterator
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
"""The values of `Outcome.what`."""


class Outcome(NamedTuple):
    """What happened to one parameter."""

    path: str
    """Our path."""
    what: str
    """"loaded"; "re-initialised" (the shapes differ, and the model keeps its own initial value); "missing" (only the
    model has it, and keeps its own initial value); "dropped" (only the checkpoint has it)."""
    why: str
    """The reason, empty if the whole parameter was loaded."""


def merge_pretrained(tree: Any, weights: ImportedWeights, config: DetectorConfig) -> tuple[Any, list[Outcome]]:
    """Puts imported weights into a model, which may differ from the checkpoint's model in the fields that it names.

    Args:
      tree: the model's pure tree. Leaves that were not imported keep their values.
      weights: from `read_pretrained`. They may hold only a backbone.
      config: the model's configuration.

    Returns:
      The tree with the imported values, and what happened to each parameter, in the order of the tree.

    Raises:
      WeightsError: the two models differ in other fields, such as a DETR's width. The message has one sentence per
        difference.
    """
    _check_compatible(weights, config)
    ours = by_path(tree)
    leaves, outcomes, wrong = dict(ours), [], []
    for path, leaf in ours.items():
        given = weights.params.get(path)
        if given is None:
            why = "the checkpoint holds only a backbone" if weights.config is None else "the checkpoint has none"
            outcomes.append(Outcome(path, MISSING, why))
        elif given.shape == leaf.shape:
            leaves[path] = np.asarray(given, leaf.dtype)
            outcomes.append(Outcome(path, LOADED, ""))
        elif reason := _reason_to_restart(path, weights.config, config):
            part = config.kept_part(path, np.asarray(given), leaf.shape)
            if part is None:
                outcomes.append(Outcome(path, REINITIALISED, reason))
            else:
                leaves[path] = np.asarray(part, leaf.dtype)
                outcomes.append(Outcome(path, LOADED, f"in part: {reason}"))
        else:
            wrong.append(f"  {path} has {list(given.shape)} in the checkpoint and {list(leaf.shape)} in the model")
    _refuse(weights, wrong)
    outcomes += [Outcome(path, DROPPED, "the model has none") for path in weights.params if path not in ours]
    return with_leaves(tree, leaves), outcomes


def _reason_to_restart(path: str, there: DetectorConfig | None, here: DetectorConfig) -> str | None:
    """Why a parameter may have another shape than in the checkpoint, or None if it must not."""
    if there is None:
        return None
    for name, paths in here.resizing_fields.items():
        old, new = getattr(there, name), getattr(here, name)
        if old != new and re.fullmatch(paths, path):
            return f"{name} is {old} in the checkpoint and {new} here"
    return None


def _check_compatible(weights: ImportedWeights, config: DetectorConfig) -> None:
    """Refuses to load parameters into a model that computes something else with them."""
    faults = [
        f"  model.{name} is {there} in the checkpoint and {here} in the configuration"
        for name, there, here in (
            ("pixel_mean", weights.pixel_mean, config.pixel_mean),
            ("pixel_std", weights.pixel_std, config.pixel_std),
        )
        if not np.allclose(there, here, rtol=1e-5)
    ]
    faults += _differences(weights.backbone, config.backbone, "model.backbone", config.backbone.free_fields)
    if weights.config is not None:
        compared_above = ("backbone", "pixel_mean", "pixel_std")
        may_differ = (*config.free_fields, *config.resizing_fields, *compared_above)
        faults += _differences(weights.config, config, "model", may_differ)
    _refuse(weights, faults)


def _differences(there: Any, here: Any, where: str, may_differ: Iterable[str]) -> Iterator[str]:
    """One sentence per field in which two configurations differ, or one about their classes."""
    if type(there) is not type(here):
        kinds = type(there).__name__, type(here).__name__
        yield f"  {where} is a {kinds[0]} in the checkpoint and a {kinds[1]} in the configuration"
        return
    for name in (f.name for f in fields(there) if f.name not in may_differ):
        if getattr(there, name) != getattr(here, name):
            yield (
                f"  {where}.{name} is {getattr(there, name)!r} in the checkpoint and {getattr(here, name)!r} in the "
                "configuration"
            )


def _refuse(weights: ImportedWeights, faults: list[str]) -> None:
    if faults:
        raise WeightsError(f"{weights.source} does not fit the configured model:\n" + "\n".join(faults))


def outcome_table(outcomes: list[Outcome]) -> str:
    """A table in aligned columns of what was loaded, re-initialised, missing and dropped.

    Parameters of the same module that share their outcome are one line.
    """

    def group(outcome: Outcome) -> tuple[str, str, str]:
        return outcome.path.split("/")[0].split(".")[0], outcome.what, outcome.why

    rows = [
        (module, counted(len(list(members)), "tensor"), what, why)
        for (module, what, why), members in groupby(sorted(outcomes, key=group), key=group)
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return "\n".join(
        "  ".join((*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3])).rstrip()
        for row in rows
    )
