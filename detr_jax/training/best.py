"""The best validation of a run so far, whose checkpoint is kept."""

import json
import os
from pathlib import Path
from typing import Any

from detr_jax.checkpoints import Checkpoints
from detr_jax.distributed import is_main


class Best:
    """Follows one metric, by default AP, over the validations of a run.

    ``best.json`` in the workdir holds the step and the AP of the best one, the step of the last, and how many there
    were without a better AP since; the link ``best`` next to it leads to the checkpoint. A validation without objects
    has no AP: it does not count, and a run that has only such validations has neither the file nor the link.
    """

    def __init__(self, workdir: Path, checkpoints: Checkpoints, start_step: int, *, anew: bool, metric: str = "AP"):
        """Goes on from ``best.json``; not where ``anew``, as after a change of the data, or where it is of no use."""
        self._metric = metric
        self._path = workdir / "best.json"
        self._link = workdir / "best"
        self._checkpoints = checkpoints
        read = None if anew else _read(self._path, metric)
        known = read and (checkpoints.folder / str(read["step"])).is_dir() and read["last"] <= start_step
        self._now: dict[str, Any] = read if read and known else {"step": None, metric: None, "last": -1, "since": 0}
        checkpoints.best_step = self._now["step"]

    @property
    def since(self) -> int:
        """Validations in a row, up to the last, without a better AP."""
        return self._now["since"]

    def add(self, step: int, value: float | None) -> None:
        """Counts the validation of the checkpoint at ``step``. A validation that is known already is ignored.

        A validation without objects, whose ``value`` of the metric is None, does not count.
        """
        now = self._now
        if step <= now["last"]:
            return
        if value is None:
            if now["step"] is None and is_main():  # what lies there is of other data
                self._path.unlink(missing_ok=True)
                self._link.unlink(missing_ok=True)
            return
        if now[self._metric] is None or value > now[self._metric]:
            now |= {"step": step, self._metric: value, "since": 0}
            self._checkpoints.best_step = step
        else:
            now["since"] += 1
        now["last"] = step
        self._checkpoints.wait()  # what is named here is on the disk
        if not is_main():
            return
        _replace(self._path, lambda path: path.write_text(json.dumps(now)))
        target = os.path.relpath(self._checkpoints.folder / str(now["step"]), self._path.parent.absolute())
        _replace(self._link, lambda path: path.symlink_to(target, target_is_directory=True))

    def sentence(self) -> str:
        """What was best and where it is."""
        step, value = self._now["step"], self._now[self._metric]
        if step is None:
            return f"no checkpoint is the best, as no validation had a value of {self._metric}"
        return f"best {self._metric} {value:.3f} at step {step}, kept in {self._checkpoints.folder / str(step)}"


def _read(path: Path, metric: str) -> dict[str, Any] | None:
    try:
        read = json.loads(path.read_text())
        if read[metric] == -1:  # as earlier versions wrote it for validations without objects
            return None
        return {
            "step": int(read["step"]),
            metric: float(read[metric]),
            "last": int(read["last"]),
            "since": int(read["since"]),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _replace(path: Path, write: Any) -> None:
    """Writes a file or link beside ``path`` and moves it there, so that one whole version exists at any time."""
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    write(beside)
    os.replace(beside, path)
