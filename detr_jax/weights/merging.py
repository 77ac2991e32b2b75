"""`merge_pretrained`: imported weights as the initial values of a model, and the table of what was loaded."""

from collections.abc import Iterator
from dataclasses import fields
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from detr_jax.config import ModelConfig
from detr_jax.weights.files import WeightsError
from detr_jax.weights.pretrained import ImportedWeights
from detr_jax.weights.trees import by_path, with_leaves
from detr_jax.wording import counted

LOADED, REINITIALISED, DROPPED, MISSING = "loaded", "re-initialised", "dropped", "missing"


class Outcome(NamedTuple):
    """What happened to one parameter."""

    path: str
    what: str
    """"loaded"; "re-initialised" (the shapes differ, and the model keeps its own initial value); "missing" (only the
    model has it, and keeps its own initial value); "dropped" (only the checkpoint has it)."""
    why: str


def merge_pretrained(tree: Any, weights: ImportedWeights, config: ModelConfig) -> tuple[Any, list[Outcome]]:
    """Puts imported weights into a model, which may differ from the checkpoint's model in its heads and layers.

    Args:
      tree: the model's pure tree. Leaves that were not imported keep their values.
      weights: from `read_pretrained`. They may hold only a backbone.
      config: the model's configuration.

    Returns:
      The tree with the imported values, and what happened to each parameter, in the order of the tree.

    Raises:
      WeightsError: the two models differ in more than classes, queries and the number of layers. The message has one
        sentence per difference.
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
            outcomes.append(Outcome(path, REINITIALISED, reason))
        else:
            wrong.append(f"  {path} has {list(given.shape)} in the checkpoint and {list(leaf.shape)} in the model")
    _refuse(weights, wrong)
    outcomes += [Outcome(path, DROPPED, "the model has none") for path in weights.params if path not in ours]
    outcomes += [Outcome(path, DROPPED, "the model has no mask head") for path in weights.mask_head]
    return with_leaves(tree, leaves), outcomes


def _reason_to_restart(path: str, there: ModelConfig | None, here: ModelConfig) -> str | None:
    """Why a parameter may have another shape than in the checkpoint, or None if it must not."""
    if there is None:
        return None
    if path.startswith("class_head/"):
        return f"{counted(there.num_classes, 'class', 'classes')} in the checkpoint, {here.num_classes} here"
    if path == "object_queries":
        return f"{counted(there.num_queries, 'query', 'queries')} in the checkpoint, {here.num_queries} here"
    return None


_MAY_DIFFER = {
    *("num_classes", "num_queries", "encoder_layers", "decoder_layers"),  # only some parameters do not fit
    *("dropout", "mask_padding", "dtype", "remat"),  # the parameters are the same
    *("backbone", "pixel_mean", "pixel_std"),  # compared separately, because a backbone's checkpoint has them too
}
_MAY_DIFFER_IN_BACKBONE = {"dilation"}


def _check_compatible(weights: ImportedWeights, config: ModelConfig) -> None:
    """Refuses to load parameters into a model that computes something else with them."""
    faults = [
        f"  model.{name} is {there} in the checkpoint and {here} in the configuration"
        for name, there, here in (
            ("pixel_mean", weights.pixel_mean, config.pixel_mean),
            ("pixel_std", weights.pixel_std, config.pixel_std),
        )
        if not np.allclose(there, here, rtol=1e-5)
    ]
    faults += _differences(weights.backbone, config.backbone, _MAY_DIFFER_IN_BACKBONE, "model.backbone")
    if weights.config is not None:
        faults += _differences(weights.config, config, _MAY_DIFFER, "model")
    _refuse(weights, faults)


def _differences(there: Any, here: Any, may_differ: set[str], where: str) -> Iterator[str]:
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
