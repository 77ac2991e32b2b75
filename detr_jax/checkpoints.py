"""Checkpoints for training and inference, written by Orbax.

A checkpoint is a folder. It is written completely or not at all. It holds these parts by name:

* ``params``: all parameters of the model, trained and frozen, as a pure tree of float32 arrays.
* ``ema``: the same tree with the EMA of the parameters, if the training keeps one.
* ``optimizer``: the state of the optimizer.
* ``progress``: the step and the position in the data.
* ``config``: the configuration as JSON. Inference rebuilds the model from it.
* ``classes``: the names of the labels as JSON, if they are known, and which of them are no things.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from orbax.checkpoint import v1 as ocp

from detr_jax.config import Config, ConfigError, Precision, from_json, to_json
from detr_jax.data.labels import TrainedLabels
from detr_jax.memory import arrays_text, fitting, is_out_of_memory
from detr_jax.models.detector import abstract_model
from detr_jax.models.detr import DETR

Tree = Any
"""A pure tree of arrays."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the message names the folder and what would be right."""


_SAVING = ocp.Context()
_SAVING.array.saving.min_slice_bytes_for_replica_parallel = 2**20
"""Orbax lets each device write a slice of a replicated array. Below 1 MiB that costs more than it saves."""


class Checkpoints:
    """The checkpoints of a run in folders named by step. The newest ``keep`` and the best are kept."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder.absolute()
        self.best_step: int | None = None
        """Step of the best checkpoint, which is kept at any age."""
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # never skip a save
            preservation_policy=_NewestAndBest(self, keep),
        )
        self._saving: tuple[int, Any] | None = None
        self.class_names: Mapping[int, str] = {}
        """Name by label. Every checkpoint holds them."""
        self.category_ids: Mapping[int, int] = {}
        """Category id of the data by label. Every checkpoint holds them. Empty if the labels are the ids."""
        self.stuff_labels: Collection[int] = ()
        """Labels of the classes that are no things, such as sky. Every checkpoint holds them."""

    def save(self, step: int, trees: dict[str, Tree], config: Config) -> None:
        """Starts to save ``trees`` (parts by name) in the background. The caller may change or donate them afterwards.

        Raises:
          CheckpointError: this save could not start, or the previous one could not be finished.
        """
        self.wait()
        position = {"step": step, "data": {"step": step}}
        parts = {**trees, "progress": position, "config": {"json": to_json(config)}}
        if self.class_names:
            parts["classes"] = {"json": json.dumps({int(label): name for label, name in self.class_names.items()})}
            if self.category_ids:
                parts["classes"]["ids"] = json.dumps({int(label): one for label, one in self.category_ids.items()})
            if self.stuff_labels:
                parts["classes"]["stuff"] = json.dumps({int(label): True for label in sorted(self.stuff_labels)})
        try:
            with _SAVING:
                self._saving = step, self._checkpointer.save_checkpointables_async(step, parts)
        except (OSError, ValueError) as error:
            raise self._failure(step, error) from error

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          CheckpointError: the checkpoint could not be written.
        """
        if self._saving is not None:
            (step, response), self._saving = self._saving, None
            try:
                response.result()
            except (OSError, ValueError) as error:
                raise self._failure(step, error) from error

    def _failure(self, step: int, error: Exception) -> "CheckpointError":
        reason = str(error).strip().splitlines()[0]
        return CheckpointError(
            f"Checkpoint {step} could not be written to {self.folder} ({reason}): free some space there, or choose "
            "another --workdir. Older checkpoints are intact."
        )

    def restore(self, step: int, targets: dict[str, Tree]) -> dict[str, Tree]:
        """Reads the parts named in ``targets``, with the dtypes and shardings of the trees there.

        Raises:
          CheckpointError: the checkpoint does not have these parts with these shapes.
        """
        try:
            return self._checkpointer.load_checkpointables(step, targets)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise CheckpointError(
                f"Checkpoint {step} in {self.folder} does not fit this configuration ({reason}): resume with the "
                "configuration of the run, or choose another --workdir."
            ) from error

    def close(self) -> None:
        """Waits until everything is written and closes the folder; raises the errors of `wait`."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()


class _NewestAndBest(ocp.training.preservation_policies.PreservationPolicy):
    """Decides for Orbax which checkpoints to keep after a new one has been written."""

    def __init__(self, checkpoints: Checkpoints, keep: int):
        self._checkpoints = checkpoints
        self._keep = keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        newest = len(checkpoints) - self._keep
        return [i >= newest or one.step == self._checkpoints.best_step for i, one in enumerate(checkpoints)]


def newest_checkpoint(path: Path) -> Path | None:
    """The newest complete checkpoint of a workdir, or of its folder ``checkpoints``. None if there is none."""
    for folder in (path / "checkpoints", path):
        steps = [child for child in folder.glob("*") if child.name.isdigit() and (child / "params").is_dir()]
        if steps:
            return max(steps, key=lambda child: int(child.name))
    return None


def find_checkpoint(path: str | Path) -> Path:
    """The newest checkpoint of a workdir, or ``path`` itself if it is a checkpoint.

    ``WORKDIR/best`` is a link to the checkpoint with the best AP.

    Raises:
      CheckpointError: there is no checkpoint.
    """
    path = Path(path).absolute()
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file: give the workdir of a run or one of its checkpoints. Convert the weights of another "
            "project with detr-jax import-weights."
        )
    if not path.is_dir():
        raise CheckpointError(
            f"{path} does not exist: give the workdir of a run or one of its checkpoints. "
            "Get released weights with detr-jax import-weights, whose --list names them."
        )
    if (path / "params").is_dir():
        return path.resolve() if path.is_symlink() else path
    if newest := newest_checkpoint(path):
        return newest
    raise CheckpointError(
        f"{path} holds no checkpoint: give the workdir of a run (with a folder checkpoints/) or one of its "
        "checkpoints, such as WORKDIR/checkpoints/1000."
    )


def load_config(path: str | Path) -> Config:
    """The configuration inside a checkpoint.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    checkpoint = find_checkpoint(path)
    try:
        return from_json(str(_load(checkpoint, "config")["json"]))
    except ConfigError as error:
        raise CheckpointError(f"The configuration inside {checkpoint} cannot be used: {error}") from None


def load_class_names(path: str | Path) -> dict[int, str]:
    """The names of the labels inside a checkpoint, by label; empty if it holds none.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return _load_by_label(path, "json")


def load_category_ids(path: str | Path) -> dict[int, int]:
    """The category ids of the data inside a checkpoint, by label; empty if the labels are the ids.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return _load_by_label(path, "ids")


def load_stuff_labels(path: str | Path) -> frozenset[int]:
    """The labels inside a checkpoint whose classes are no things, such as sky; empty if it holds none.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return frozenset(_load_by_label(path, "stuff"))


def load_labels(path: str | Path) -> TrainedLabels:
    """What the labels of a checkpoint mean; raises the errors of `load_class_names`."""
    return TrainedLabels(load_class_names(path), load_category_ids(path), load_stuff_labels(path))


def labels_of_run(workdir: Path) -> TrainedLabels | None:
    """The names and category ids of the labels of a run's newest checkpoint; None if it cannot be read."""
    try:
        return load_labels(workdir)
    except CheckpointError:
        return None


def _load_by_label(path: str | Path, key: str) -> dict[int, Any]:
    checkpoint = find_checkpoint(path)
    if not (checkpoint / "classes").is_dir():
        return {}
    text = _load(checkpoint, "classes").get(key)
    return {} if text is None else {int(label): value for label, value in json.loads(str(text)).items()}


def load_model(path: str | Path, *, ema: bool = True, dtype: str | None = None) -> tuple[DETR, Config]:
    """A trained model and its configuration.

    Args:
      path: a checkpoint, or a workdir, whose newest checkpoint is used. ``WORKDIR/best`` is its best checkpoint.
      ema: use the EMA of the parameters if the checkpoint has it.
      dtype: compute type, "float32" or "bfloat16", instead of the one that the model was trained with.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
      OutOfMemoryError: the model does not fit into memory.
    """
    checkpoint = find_checkpoint(path)
    config = load_config(checkpoint)
    if dtype is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=Precision(dtype)))
    part = "ema" if ema and (checkpoint / "ema").is_dir() else "params"
    graph, abstract = abstract_model(config.model)
    with fitting(f"The model in {checkpoint} ({arrays_text(abstract)})", "Use a machine with more memory."):
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), abstract)
        # on the device: numpy arrays would be sent there at every call
        return nnx.merge(graph, jax.tree.map(jnp.asarray, _load(checkpoint, part, target))), config


def _load(checkpoint: Path, part: str, target: Tree = None) -> Tree:
    """Reads a part of a checkpoint, with the shapes of ``target`` if it is given.

    Raises:
      CheckpointError: the part is missing or damaged.
    """
    try:
        return ocp.load_checkpointables(checkpoint, {part: target})[part]
    except Exception as error:  # Orbax and its libraries raise errors of many types
        if is_out_of_memory(error):
            raise
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"The checkpoint {checkpoint} is damaged: its {part!r} cannot be read ({reason}). Use another checkpoint "
            "of the run, or a copy."
        ) from error
