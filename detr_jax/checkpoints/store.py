"""`Checkpoints`: saves the checkpoints of a run with Orbax, and keeps their folder in order."""

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from detr_jax.checkpoints import checksums
from detr_jax.checkpoints.errors import CheckpointWriteError
from detr_jax.checkpoints.parts import CHECKSUMS, Tree
from detr_jax.config import Config, to_json
from detr_jax.distributed import is_main, wait_for_all
from detr_jax.memory import size_text
from detr_jax.wording import first_line

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
        parts = {**trees, "progress": position, "config": {"json": to_json(config), "checksums": CHECKSUMS}}
        if self.class_names:
            parts["classes"] = {"json": json.dumps({int(label): name for label, name in self.class_names.items()})}
            if self.category_ids:
                parts["classes"]["ids"] = json.dumps({int(label): one for label, one in self.category_ids.items()})
            if self.stuff_labels:
                parts["classes"]["stuff"] = json.dumps({int(label): True for label in sorted(self.stuff_labels)})
        sums = json.dumps({name: checksums.of_tree(tree) for name, tree in parts.items()})
        parts[CHECKSUMS] = {"json": sums, "of_json": str(checksums.of_text(sums))}
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
        reason = first_line(error)
        if found := re.search(r": ([^:]*) \[os_error_code=", reason):  # TensorStore's messages are long
            reason = found[1]
        return CheckpointWriteError(
            f"Checkpoint {step} could not be written to {self.folder} ({reason}): free some space there, or choose "
            "another --workdir. Older checkpoints stay as they are."
        )

    def _remove_failed(self) -> None:
        for step in self._failed if is_main() else ():
            for unfinished in self.folder.glob(f"{step}.*"):
                shutil.rmtree(unfinished, ignore_errors=True)

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
