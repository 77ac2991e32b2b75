"""Checkpoints of training and inference, on Orbax.

A checkpoint is one folder, written whole or not at all, that holds the named parts

* ``params``: the whole model, trained and frozen, as a pure tree of float32 arrays;
* ``ema``: the same with the moving average of the parameters, where one is kept;
* ``optimizer``: the optimiser's state;
* ``progress``: the step reached and the position in the data;
* ``config``: the configuration as JSON, from which inference rebuilds the model;
* ``classes``: the names of the labels as JSON, where they are known.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
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
    """A checkpoint that cannot be read; the message names the folder and what would be right."""


_SAVING = ocp.Context()
_SAVING.array.saving.min_slice_bytes_for_replica_parallel = 2**20
"""Where devices hold the same array, each saves a part of it; to cut small ones up takes longer."""


class Checkpoints:
    """The checkpoints of a run in numbered folders: the newest ``keep`` of them, and the best."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder.absolute()
        self.best_step: int | None = None
        """Step of a checkpoint that is kept whatever its age."""
        self._checkpointer = ocp.training.Checkpointer(
            self.folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # never skip a save
            preservation_policy=_NewestAndBest(self, keep),
        )
        self._saving: tuple[int, Any] | None = None
        self.class_names: Mapping[int, str] = {}
        """Name by label, to go into every checkpoint."""
        self.category_ids: Mapping[int, int] = {}
        """Category id of the data by label, to go into every checkpoint; empty if the labels are the ids."""

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, trees: dict[str, Tree], config: Config) -> None:
        """Starts to save ``trees`` (parts by name) in the background; they may be changed or donated afterwards.

        Raises:
          CheckpointError: this save could not begin, or the one before could not be finished.
        """
        self.wait()
        position = {"step": step, "data": {"step": step}}
        parts = {**trees, "progress": position, "config": {"json": to_json(config)}}
        if self.class_names:
            parts["classes"] = {"json": json.dumps({int(label): name for label, name in self.class_names.items()})}
            if self.category_ids:
                parts["classes"]["ids"] = json.dumps({int(label): one for label, one in self.category_ids.items()})
        try:
            with _SAVING:
                self._saving = step, self._checkpointer.save_checkpointables_async(step, parts)
        except (OSError, ValueError) as error:
            raise self._failure(step, error) from error

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          CheckpointError: something could not be.
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
            f"Checkpoint {step} could not be written to {self.folder} ({reason}): make room there, or choose another "
            "--workdir; older checkpoints are whole."
        )

    def restore(self, step: int, targets: dict[str, Tree]) -> dict[str, Tree]:
        """The parts in ``targets``, with the dtypes and shardings of those trees.

        Raises:
          CheckpointError: the checkpoint does not hold these parts in these shapes.
        """
        try:
            return self._checkpointer.load_checkpointables(step, targets)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise CheckpointError(
                f"Checkpoint {step} in {self.folder} does not fit this configuration ({reason}): continue with the "
                "configuration it was made with, or choose another --workdir."
            ) from error

    def close(self) -> None:
        """Waits until everything is written, and lets go of the folder; raises what `wait` does."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()


class _NewestAndBest(ocp.training.preservation_policies.PreservationPolicy):
    """Which checkpoints stay when a new one has been written; asked by Orbax."""

    def __init__(self, checkpoints: Checkpoints, keep: int):
        self._checkpoints = checkpoints
        self._keep = keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        newest = len(checkpoints) - self._keep
        return [i >= newest or one.step == self._checkpoints.best_step for i, one in enumerate(checkpoints)]


def find_checkpoint(path: str | Path) -> Path:
    """The folder of the newest checkpoint in a workdir, or ``path`` itself where that is a checkpoint.

    ``WORKDIR/best`` is a link to the checkpoint with the best AP, which a training keeps.

    Raises:
      CheckpointError: there is none.
    """
    path = Path(path).absolute()
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file: give the workdir of a run or one of its checkpoints. A detector of another project "
            "becomes one by detr-jax import-weights."
        )
    if not path.is_dir():
        raise CheckpointError(
            f"{path} does not exist: give the workdir of a run or one of its checkpoints. "
            "Released weights become one by detr-jax import-weights, whose --list names them."
        )
    if (path / "params").is_dir():
        return path.resolve() if path.is_symlink() else path
    for folder in (path / "checkpoints", path):
        steps = [child for child in folder.glob("*") if child.name.isdigit() and (child / "params").is_dir()]
        if steps:
            return max(steps, key=lambda child: int(child.name))
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
    """The names of the labels inside a checkpoint, by label; empty where it holds none.

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


def load_labels(path: str | Path) -> TrainedLabels:
    """What the labels of a checkpoint mean; errors are those of `load_class_names`."""
    return TrainedLabels(load_class_names(path), load_category_ids(path))


def labels_of_run(workdir: Path) -> TrainedLabels | None:
    """What the labels of a run's newest checkpoint mean; None if there is none that can be read."""
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
      path: a workdir (its newest checkpoint is taken) or a checkpoint; ``WORKDIR/best`` is the best.
      ema: take the moving average of the parameters where there is one.
      dtype: compute type, "float32" or "bfloat16", in place of the one that the model was trained with.

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
        # on the device, as programs would send arrays of numpy there at every call
        return nnx.merge(graph, jax.tree.map(jnp.asarray, _load(checkpoint, part, target))), config


def _load(checkpoint: Path, part: str, target: Tree = None) -> Tree:
    """A part of a checkpoint, in the shapes of ``target`` where given.

    Raises:
      CheckpointError: it is missing or damaged.
    """
    try:
        return ocp.load_checkpointables(checkpoint, {part: target})[part]
    except Exception as error:  # of many kinds, as Orbax and what it reads with have them
        if is_out_of_memory(error):
            raise
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"The checkpoint {checkpoint} is damaged: its {part!r} cannot be read ({reason}). Take another one of the "
            "run, or a copy."
        ) from error
