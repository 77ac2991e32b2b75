"""`StateSaver`: saves the state of a run, and follows ``training.on_write_error`` if that fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from detr_jax.checkpoints import Checkpoints, CheckpointWriteError
from detr_jax.config import OnWriteError
from detr_jax.training.finiteness import check_state
from detr_jax.training.state import TrainState
from detr_jax.workdir import WorkdirError


class StateSaver:
    """Saves states as checkpoints in the background."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        save: Callable[[TrainState], None],
        policy: OnWriteError,
        say: Callable[[str], None],
    ):
        """Prepares the saves of a run.

        Args:
          checkpoints: the checkpoints of the run.
          save: starts to save a state.
          policy: whether the run goes on if a checkpoint cannot be written.
          say: writes a sentence to the log.
        """
        self._checkpoints = checkpoints
        self._save = save
        self._policy = policy
        self._say = say
        self._failed = False

    def __call__(self, state: TrainState) -> None:
        """Starts to save a state, after the save before is finished.

        Raises:
          TrainingError: a parameter, or a value of the optimizer or the EMA, is not finite. Nothing is saved.
          CheckpointError: a checkpoint could not be written, and the policy is "stop".
        """
        check_state(state)
        with self.tolerant():
            self._checkpoints.wait()
        with self.tolerant():
            self._save(state)
            self._failed = False

    @contextmanager
    def tolerant(self) -> Iterator[None]:
        """Logs that something could not be written if the policy is "continue". Otherwise the error is raised."""
        try:
            yield
        except (CheckpointWriteError, WorkdirError) as error:
            if self._policy == OnWriteError.STOP:
                raise
            self._failed = self._failed or isinstance(error, CheckpointWriteError)
            self._say(f"{error} The run goes on, and the next checkpoint is tried.")

    def finish(self, state: TrainState) -> None:
        """Waits until the last save is finished. If it failed, the state is saved once more.

        Raises:
          CheckpointError: the state could not be written.
        """
        with self.tolerant():
            self._checkpoints.wait()
        if self._failed:
            self._save(state)
            self._checkpoints.wait()
