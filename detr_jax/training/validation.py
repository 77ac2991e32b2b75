"""The validations and snapshots of a run: they are computed, logged, and their detections are stored."""

from collections.abc import Callable
from pathlib import Path

from detr_jax.distributed import is_main
from detr_jax.evaluation.coco import Metrics
from detr_jax.evaluation.detections_file import (
    DETECTIONS,
    SNAPSHOTS,
    StoredDetections,
    snapshot_steps,
    write_detections,
)
from detr_jax.evaluation.validator import Validator, Values
from detr_jax.memory import fitting
from detr_jax.sharding import Tree
from detr_jax.training.resolve import Resolved
from detr_jax.training.run_log import RunLog
from detr_jax.training.signals import StopSignals
from detr_jax.training.state import TrainState
from detr_jax.workdir import WorkdirError, replace_file


class Validation:
    """Evaluates the model during a run."""

    def __init__(
        self,
        validator: Validator,
        frozen: Tree,
        log: RunLog,
        workdir: Path,
        start_step: int,
        resolved: Resolved,
        progress: Callable[[str], object] = lambda doing: None,
    ):
        """Prepares the validations of a run.

        Args:
          validator: computes detections and metrics.
          frozen: the frozen parameters.
          log: receives the metrics.
          workdir: the folder for the stored detections.
          start_step: the step at which the run starts or resumes. A snapshot of this step is not taken again.
          resolved: says how many snapshots there are. If its changes may change the metrics, validations that an
            earlier run has logged are ignored.
          progress: called at the start and after each batch of a validation, with a text such as "in the validation".
        """
        self._validator = validator
        self._frozen = frozen
        self._log = log
        self._workdir = workdir
        self._progress = progress
        self._reset = resolved.changes_metrics
        self._snapshot_steps = snapshot_steps(resolved.total_steps, resolved.config.evaluation.snapshots)
        if self._snapshot_file(start_step).exists():
            self._snapshot_steps -= {start_step}
        self._warned = False

    def evaluate(self, state: TrainState, step: int, stop: StopSignals) -> Metrics:
        """The metrics of the model at ``step``. They come from the log if the run was validated here and resumed.

        Raises:
          Interrupted: a signal came.
          OutOfMemoryError: the validation does not fit into memory.
        """
        if not self._reset and (metrics := self._log.validation_at(step)):
            self._log.say_validation(step, metrics)
            return metrics
        doing = f"in the validation at step {step}"
        self._progress(doing)

        def after_batch(images: int) -> None:
            check()
            self._progress(doing)

        with (
            self._log.uncounted(),
            fitting(f"The validation at step {step}", "Use a machine with more memory."),
            stop.at_once(step) as check,
        ):
            found, metrics = self._validator.validate(self._params(state), step, after_batch)
            self._store(self._workdir / DETECTIONS, found)
        self._log.validation(step, metrics)
        if not self._warned and (sentence := self._validator.sameness(found)):
            self._log.say(sentence)
            self._warned = True
        return metrics

    def take_snapshot(self, state: TrainState, step: int) -> None:
        """Stores the detections of the model in the first validation images, if ``step`` is a step for a snapshot."""
        if step in self._snapshot_steps:
            self._progress(f"in the snapshot of step {step}")
            with self._log.uncounted():
                self._store(self._snapshot_file(step), self._validator.snapshot(self._params(state), step))

    def draw(self, state: TrainState, step: int, stop: StopSignals) -> None:
        """Writes ``predictions.png``.

        Raises:
          Interrupted: a signal came.
        """
        self._progress("while drawing predictions.png")
        path = self._workdir / "predictions.png"
        with stop.at_once(step):
            try:
                replace_file(path, lambda temporary: self._validator.draw(self._params(state), temporary))
            except WorkdirError as error:
                self._log.say(str(error))

    def _params(self, state: TrainState) -> Values:
        return state.eval_params, self._frozen

    def _snapshot_file(self, step: int) -> Path:
        return self._workdir / SNAPSHOTS / f"{step}.npz"

    def _store(self, path: Path, found: StoredDetections) -> None:
        """Writes detections for pictures and reports. If that fails, the run continues without them."""
        if not is_main():
            return
        try:
            write_detections(path, found, self._validator.source.category_ids)
        except WorkdirError as error:
            self._log.say(f"{error} Pictures and reports will lack it.")
