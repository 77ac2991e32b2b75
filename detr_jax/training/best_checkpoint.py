"""The best validation of a run so far, whose checkpoint is kept: ``best.json`` and the link ``best`` in the workdir."""

import json
import os
from pathlib import Path
from typing import Any

from detr_jax.checkpoints import CheckpointError, Checkpoints
from detr_jax.distributed import is_main
from detr_jax.json_files import read_object
from detr_jax.workdir import replace_file, replace_text, writing


class BestCheckpoint:
    """Follows one metric, by default AP, over the validations of a run, and keeps the best checkpoint.

    ``best.json`` holds the step and the metric of the best validation, the step of the last one, and the number of
    validations since then without a better value. The link ``best`` leads to the checkpoint. A validation without
    objects has no AP and does not count. A run that has only such validations has neither the file nor the link.
    """

    def __init__(self, workdir: Path, checkpoints: Checkpoints, start_step: int, *, metric: str, reset: bool):
        """Continues from ``best.json``, unless ``reset`` is set (the data changed) or the file is of no use.

        The file is of no use if it is missing or damaged, or if its checkpoint is missing or newer than ``start_step``.
        Validations after ``start_step`` are done again. A link that a kill left behind its checkpoint is renewed.
        """
        self.metric = metric
        self._path = workdir / "best.json"
        self._link = workdir / "best"
        self._checkpoints = checkpoints
        found = None if reset else _read(self._path, metric)
        usable = found and (checkpoints.folder / str(found["step"])).is_dir() and found["step"] <= start_step
        self._record: dict[str, Any] = {"step": None, metric: None, "last": -1, "since": 0}
        if found and usable:
            self._record = {**found, "last": min(found["last"], start_step)}
        checkpoints.best_step = self._record["step"]
        if self._record["step"] is not None and is_main():
            self._link_best()

    @property
    def validations_since(self) -> int:
        """The number of validations after the best one."""
        return self._record["since"]

    def add(self, step: int, value: float | None) -> None:
        """Counts the validation of the checkpoint at ``step``. A validation that was counted before is ignored.

        ``value``, the metric, is None if the validation has no objects. Then it does not count.

        Raises:
          CheckpointError: the checkpoint could not be written. The validation does not count.
        """
        record = dict(self._record)
        if step <= record["last"]:
            return
        if value is None:
            if record["step"] is None and is_main():  # the files belong to other data
                with writing(self._path):
                    self._path.unlink(missing_ok=True)
                    self._link.unlink(missing_ok=True)
            return
        if record[self.metric] is None or value > record[self.metric]:
            record |= {"step": step, self.metric: value, "since": 0}
        else:
            record["since"] += 1
        record["last"] = step
        self._checkpoints.best_step = record["step"]
        try:
            self._checkpoints.wait()  # the files must name a checkpoint that is complete
        except CheckpointError:
            self._checkpoints.best_step = self._record["step"]
            raise
        self._record = record
        if not is_main():
            return
        replace_text(self._path, json.dumps(record))
        self._link_best()

    def _link_best(self) -> None:
        """Makes the link lead to the best checkpoint."""
        target = os.path.relpath(self._checkpoints.folder / str(self._record["step"]), self._path.parent.absolute())
        if not self._link.is_symlink() or os.readlink(self._link) != target:
            replace_file(self._link, lambda path: path.symlink_to(target, target_is_directory=True))

    def sentence(self) -> str:
        """A sentence for the log with the best value and its checkpoint."""
        step, value = self._record["step"], self._record[self.metric]
        if step is None:
            return f"no checkpoint is the best, as no validation had a value of {self.metric}"
        return f"best {self.metric} {value:.3f} at step {step}, kept in {self._checkpoints.folder / str(step)}"


def _read(path: Path, metric: str) -> dict[str, Any] | None:
    try:
        found = read_object(path)
        if found[metric] == -1:  # earlier versions wrote this for validations without objects
            return None
        return {
            "step": int(found["step"]),
            metric: float(found[metric]),
            "last": int(found["last"]),
            "since": int(found["since"]),
        }
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
