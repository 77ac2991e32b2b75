"""Checkpoints for training and inference, written by Orbax.

A checkpoint is a folder. It is written completely or not at all. It holds these parts by name:

* ``params``: all parameters of the model, trained and frozen, as a pure tree of float32 arrays.
* ``ema``: the same tree with the EMA of the parameters, if the training keeps one.
* ``optimizer``: the state of the optimizer.
* ``progress``: the step and the position in the data.
* ``checksums``: a checksum of every array and text of the other parts. Damage is found when a part is read.
* ``config``: the configuration as JSON. Inference rebuilds the model from it.
* ``classes``: the names of the labels as JSON, if they are known, and which of them are no things.
"""

import contextlib
import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from orbax.checkpoint import v1 as ocp

from detr_jax import checkpoint_sizes, checksums
from detr_jax.config import Config, ConfigError, Precision, check_model, from_json, to_json
from detr_jax.data.labels import TrainedLabels
from detr_jax.distributed import is_main, wait_for_all
from detr_jax.files import UnusableFileError
from detr_jax.json_files import parse_object
from detr_jax.memory import arrays_text, fitting, is_out_of_memory, size_text
from detr_jax.models.detector import abstract_model
from detr_jax.models.detr import DETR

T = TypeVar("T")

Tree = Any
"""A pure tree of arrays."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the message names the folder and what would be right."""


class DamagedCheckpointError(CheckpointError):
    """A part of a checkpoint is missing or damaged; the message names it."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written, for example because the disk is full."""


_CHECKSUMS = "checksums"

_SAVING = ocp.Context()
_SAVING.array.saving.min_slice_bytes_for_replica_parallel = 2**20
"""Orbax lets each device write a slice of a replicated array. Below 1 MiB that costs more than it saves."""


def _is_for_the_user(record: logging.LogRecord) -> bool:
    """Whether a record is neither a traceback that Orbax logs beside the error it raises, nor about its empty parts."""
    by_orbax = "orbax" in record.pathname
    return not (by_orbax and (record.exc_info or "Skipping merge of OCDBT" in record.getMessage()))


class Checkpoints:
    """The checkpoints of a run in folders named by step. The newest ``keep`` and the best are kept."""

    def __init__(self, folder: Path, keep: int):
        logging.getLogger("absl").addFilter(_is_for_the_user)
        self.folder = folder.absolute()
        self.best_step: int | None = None
        """Step of the best checkpoint, which is kept at any age."""
        self._keep = keep
        self._checkpointer = self._open()
        self._saving: tuple[int, Any] | None = None
        self._failed: set[int] = set()
        self.notes: list[str] = []
        """Sentences for the log about checkpoints that were found to be damaged."""
        self.class_names: Mapping[int, str] = {}
        """Name by label. Every checkpoint holds them."""
        self.category_ids: Mapping[int, int] = {}
        """Category id of the data by label. Every checkpoint holds them. Empty if the labels are the ids."""
        self.stuff_labels: Collection[int] = ()
        """Labels of the classes that are no things, such as sky. Every checkpoint holds them."""

    def _open(self) -> Any:
        return ocp.training.Checkpointer(
            self.folder,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # never skip a save
            preservation_policy=_NewestAndBest(self, self._keep),
        )

    def save(self, step: int, trees: dict[str, Tree], config: Config) -> None:
        """Starts to save ``trees`` (parts by name) in the background. The caller may change or donate them afterwards.

        Raises:
          CheckpointWriteError: this save could not start, or the previous one could not be finished.
        """
        self.wait()
        position = {"step": step, "data": {"step": step}}
        parts = {**trees, "progress": position, "config": {"json": to_json(config), "checksums": _CHECKSUMS}}
        if self.class_names:
            parts["classes"] = {"json": json.dumps({int(label): name for label, name in self.class_names.items()})}
            if self.category_ids:
                parts["classes"]["ids"] = json.dumps({int(label): one for label, one in self.category_ids.items()})
            if self.stuff_labels:
                parts["classes"]["stuff"] = json.dumps({int(label): True for label in sorted(self.stuff_labels)})
        sums = json.dumps({name: checksums.of_tree(tree) for name, tree in parts.items()})
        parts[_CHECKSUMS] = {"json": sums, "of_json": str(checksums.of_text(sums))}
        try:
            self._check_space(trees)
            with _SAVING:
                self._saving = step, self._checkpointer.save_checkpointables_async(step, parts)
        except (OSError, ValueError) as error:
            raise self._failure(step, error) from error

    def _check_space(self, trees: dict[str, Tree]) -> None:
        """Raises an `OSError` if the disk is too full, before threads of Orbax fail one by one."""
        place = self.folder if self.folder.is_dir() else self.folder.parent
        needed, free = sum(x.nbytes for x in jax.tree.leaves(trees)), shutil.disk_usage(place).free
        if free < needed and jax.process_count() == 1:
            raise OSError(f"it needs {size_text(needed)}, and {size_text(free)} are free")

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          CheckpointWriteError: the checkpoint could not be written.
        """
        if self._saving is not None:
            (step, response), self._saving = self._saving, None
            try:
                response.result()
            except (OSError, ValueError) as error:
                raise self._failure(step, error) from error

    def _failure(self, step: int, error: Exception) -> CheckpointWriteError:
        """The error for a failed save. What was written of it is deleted, as it may fill the disk."""
        self._failed.add(step)
        with contextlib.suppress(OSError, ValueError):
            self._checkpointer.close()
        self._remove_failed()
        self._checkpointer = self._open()  # the one before counts the failed checkpoint
        reason = str(error).strip().splitlines()[0]
        if found := re.search(r": ([^:]*) \[os_error_code=", reason):  # TensorStore's messages are long
            reason = found[1]
        return CheckpointWriteError(
            f"Checkpoint {step} could not be written to {self.folder} ({reason}): free some space there, or choose "
            "another --workdir. Older checkpoints are intact."
        )

    def _remove_failed(self) -> None:
        for step in self._failed if is_main() else ():
            for unfinished in self.folder.glob(f"{step}.*"):
                shutil.rmtree(unfinished, ignore_errors=True)

    def restore(self, step: int, targets: dict[str, Tree]) -> dict[str, Tree]:
        """Reads the parts named in ``targets``, with the dtypes and shardings of the trees there.

        Raises:
          DamagedCheckpointError: a part is missing or damaged.
          CheckpointError: the checkpoint does not have these parts with these shapes.
        """
        folder = self.folder / str(step)
        with _size_errors(folder):
            checkpoint_sizes.check_stored(folder)
        try:
            found = self._checkpointer.load_checkpointables(step, targets)
            expected = _expected(folder)
            for name, tree in found.items():
                _verify(folder, name, tree, expected)
            return found
        except CheckpointError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            check_sound(folder)
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise CheckpointError(
                f"Checkpoint {step} in {self.folder} does not fit this configuration ({reason}): resume with the "
                "configuration of the run, or choose another --workdir."
            ) from error

    def set_aside(self, step: int) -> Path:
        """Moves a damaged checkpoint out of the way, so that the run can save this step again.

        Returns:
          Where it is now: ``WORKDIR/damaged/STEP``, with a number behind it if there is one already.
        """
        place, number = self.folder.parent / "damaged" / str(step), 1
        while place.exists():
            number += 1
            place = place.with_name(f"{step}-{number}")
        if is_main():
            place.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(place)
        wait_for_all(f"checkpoint {step} was set aside")
        self._checkpointer.close()
        self._checkpointer = self._open()
        return place

    def close(self) -> None:
        """Waits until everything is written and closes the folder; raises the errors of `wait`."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()
            self._remove_failed()  # threads of Orbax may have written more after the failure


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
    return next(iter(checkpoints_of(path)), None)


def checkpoints_of(path: Path) -> list[Path]:
    """The complete checkpoints of a workdir, or of its folder ``checkpoints``, the newest one first."""
    for folder in (path / "checkpoints", path):
        steps = [child for child in folder.glob("*") if child.name.isdigit() and (child / "params").is_dir()]
        if steps:
            return sorted(steps, key=lambda child: -int(child.name))
    return []


def incomplete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder that lack their parameters, so that they cannot be read."""
    return [child for child in folder.glob("*") if child.name.isdigit() and not (child / "params").is_dir()]


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
    return _read_newest(path, _config_of)


def _config_of(checkpoint: Path) -> Config:
    try:
        config = from_json(str(_text_in(checkpoint, "config", "json")))
        check_model(config.model)
        return config
    except ConfigError as error:
        raise CheckpointError(f"The configuration inside {checkpoint} cannot be used: {error}") from None


def _read_newest(path: str | Path, read: Callable[[Path], T]) -> T:
    """Reads a checkpoint, or the newest one of a workdir.

    A run that trains at the same time may delete a checkpoint while it is read. Then the newest one is read instead.
    """
    while True:
        checkpoint = find_checkpoint(path)
        try:
            return read(checkpoint)
        except CheckpointError:
            if find_checkpoint(path) == checkpoint:
                raise


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
    def read(checkpoint: Path) -> dict[int, Any]:
        if not has_part(checkpoint, "classes"):
            return {}
        text = _text_in(checkpoint, "classes", key)
        if text is None:
            return {}
        try:
            found = {int(label): value for label, value in parse_object(text).items()}
        except ValueError as error:
            raise _damaged(checkpoint, f"its 'classes' cannot be read ({error})") from None
        kind = {"json": str, "ids": int, "stuff": bool}[key]
        if any(type(value) is not kind for value in found.values()):
            raise _damaged(checkpoint, f"its 'classes' hold something else than a {kind.__name__} per label")
        return found

    return _read_newest(path, read)


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
    return _read_newest(path, lambda checkpoint: _model_of(checkpoint, ema, dtype))


def _model_of(checkpoint: Path, ema: bool, dtype: str | None) -> tuple[DETR, Config]:
    config = _config_of(checkpoint)
    if dtype is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=Precision(dtype)))
    part = "ema" if ema and has_part(checkpoint, "ema") else "params"
    with _size_errors(checkpoint):
        checkpoint_sizes.check_depth(checkpoint, config.model)
        graph, abstract = abstract_model(config.model)
        checkpoint_sizes.check_model(checkpoint, abstract)
    with fitting(f"The model in {checkpoint} ({arrays_text(abstract)})", "Use a machine with more memory."):
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), abstract)
        # on the device: numpy arrays would be sent there at every call
        return nnx.merge(graph, jax.tree.map(jnp.asarray, _load(checkpoint, part, target))), config


def _load(checkpoint: Path, part: str, target: Tree = None) -> Tree:
    """Reads a part of a checkpoint, with the shapes of ``target`` if it is given.

    Raises:
      CheckpointError: the part is missing or damaged.
    """
    found = _read(checkpoint, part, target)
    _verify(checkpoint, part, found, _expected(checkpoint))
    return found


def _read(checkpoint: Path, part: str, target: Tree = None) -> Tree:
    """As `_load`, without comparing checksums."""
    with _size_errors(checkpoint):
        checkpoint_sizes.check_stored(checkpoint)
    try:
        return ocp.load_checkpointables(checkpoint, {part: target})[part]
    except Exception as error:  # Orbax and its libraries raise errors of many types
        if is_out_of_memory(error):
            raise
        reason = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0]
        raise _damaged(checkpoint, f"its {part!r} cannot be read ({reason})") from error


def _text_in(checkpoint: Path, part: str, key: str) -> str | None:
    """A text of a part. None if the part has no such text.

    Raises:
      CheckpointError: the part is missing or damaged, or holds something else than texts.
    """
    found = _load(checkpoint, part)
    if not isinstance(found, Mapping) or not isinstance(found.get(key), str | None):
        raise _damaged(checkpoint, f"its {part!r} holds something else than texts")
    return found.get(key)


@contextlib.contextmanager
def _size_errors(checkpoint: Path) -> Iterator[None]:
    """The errors of `checkpoint_sizes` as a `CheckpointError`."""
    try:
        yield
    except UnusableFileError as error:
        raise CheckpointError(f"The checkpoint {checkpoint} is refused: {error}.") from None


def has_part(checkpoint: Path, part: str) -> bool:
    """Whether a checkpoint has a part.

    Raises:
      DamagedCheckpointError: it should have the part, and it is missing.
    """
    if (checkpoint / part).is_dir():
        return True
    if part in (_expected(checkpoint) or ()):
        raise _damaged(checkpoint, f"its {part!r} is missing")
    return False


def check_sound(checkpoint: Path) -> None:
    """Read every part of a checkpoint and compare it with its checksums.

    Raises:
      DamagedCheckpointError: a part is missing or damaged, or the checkpoint is of another step than its folder says.
    """
    expected = _expected(checkpoint)
    for part in expected or ("params", "optimizer", "progress", "config"):
        _verify(checkpoint, part, _read(checkpoint, part), expected)
    check_step(checkpoint)


def check_step(checkpoint: Path) -> None:
    """Check that a checkpoint is of the step that its folder is named by.

    Raises:
      DamagedCheckpointError: it is of another step, or does not say of which.
    """
    try:
        step = int(_load(checkpoint, "progress")["step"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(checkpoint, "its 'progress' holds no step") from None
    if checkpoint.name.isdigit() and step != int(checkpoint.name):
        raise _damaged(checkpoint, f"it is of step {step}")


def _expected(checkpoint: Path) -> dict[str, checksums.Checksums] | None:
    """The checksums of each part. None for checkpoints of versions that had none.

    Raises:
      DamagedCheckpointError: the checksums are missing or damaged.
    """
    if not (checkpoint / _CHECKSUMS).is_dir():
        config = _read(checkpoint, "config") if (checkpoint / "config").is_dir() else {}
        if _CHECKSUMS in config:
            raise _damaged(checkpoint, "its 'checksums' are missing")
        return None
    stored = _read(checkpoint, _CHECKSUMS)
    try:
        text = str(stored["json"])
        if str(checksums.of_text(text)) != str(stored["of_json"]):
            raise ValueError("they differ from their own checksum")
        expected: dict[str, checksums.Checksums] = parse_object(text)
        if not all(isinstance(sums, dict) for sums in expected.values()):
            raise ValueError("a part has no list of them")
    except (KeyError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _damaged(checkpoint, f"its 'checksums' cannot be read ({reason})") from error
    return expected


def _verify(checkpoint: Path, part: str, tree: Tree, expected: dict[str, checksums.Checksums] | None) -> None:
    """Compare a part that was read with its checksums, which are those of `_expected`.

    Raises:
      DamagedCheckpointError: they differ.
    """
    if expected is None:
        return
    if part not in expected:
        raise _damaged(checkpoint, f"its checksums lack {part!r}")
    if wrong := checksums.differing(tree, expected[part]):
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise _damaged(checkpoint, f"{part}/{wrong[0]}{more} differs from its checksum")


def _damaged(checkpoint: Path, what: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f"The checkpoint {checkpoint} is damaged: {what}. Use another checkpoint of the run, or a copy."
    )
