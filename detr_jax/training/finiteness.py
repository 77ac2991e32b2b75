"""Checks that the numbers of a training are finite: the terms of every step, and the state before it is saved."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from detr_jax.config import OnNonfinite, Precision
from detr_jax.training.error import TrainingError
from detr_jax.training.failed_batch import write_failed_batch
from detr_jax.training.loss_spikes import LossSpikes
from detr_jax.training.resolve import Resolved
from detr_jax.training.state import TrainState
from detr_jax.training.step import SKIPPED

_NAMED = 8  # images in a message
_ADVICE = "Lower optimizer.learning_rate, or add optimizer.warmup_steps."


class TermsCheck:
    """Follows ``training.on_nonfinite``, and logs spikes of the loss."""

    def __init__(self, resolved: Resolved, workdir: Path, rows: Sequence[int], say: Callable[[str], None]):
        """Prepares the checks.

        Args:
          resolved: the configuration and the data.
          workdir: gets the batches of steps with values that are not finite.
          rows: the rows of each batch that this process has.
          say: writes a sentence to the log.
        """
        self._resolved = resolved
        self._workdir = workdir
        self._rows = rows
        self._say = say
        self._skipped = 0
        self._spikes = LossSpikes()

    def means(self, terms: Sequence[dict[str, np.ndarray]], step: int) -> dict[str, float]:
        """The mean of each term over some steps, the last of which is ``step``.

        With "skip", steps whose update was skipped do not count. A term is left out if all steps were skipped.

        Raises:
          TrainingError: a term is not finite, and the run must stop. The message has the step, the terms, and the
            images of the step.
        """
        training = self._resolved.config.training
        in_float32 = getattr(self._resolved.config.model, "dtype", Precision.FLOAT32) == Precision.FLOAT32
        advice = _ADVICE if in_float32 else f"{_ADVICE} Or train in float32."
        sound = []
        for at, values in enumerate(terms, step - len(terms) + 1):
            skipped = bool(values.get(SKIPPED, 0))
            wrong = {name: float(value) for name, value in values.items() if not np.isfinite(value)}
            if not skipped and not wrong:
                sound.append(values)
                if times := self._spikes.add(float(values["loss"])):
                    loss = float(values["loss"])
                    self._say(
                        f"The loss rose to {loss:.4g} at step {at}, {times:.1f} times the median of the steps before "
                        f"it, for the images {_images(at, self._resolved)}."
                    )
                continue
            what = f"{_sentence(wrong, at)}, for the images {_images(at, self._resolved)}."
            replay = write_failed_batch(self._workdir, at, self._resolved, self._rows)
            if training.on_nonfinite == OnNonfinite.STOP or not skipped:
                raise TrainingError(f"{what} The step is not part of any checkpoint. {advice} {replay}")
            self._skipped += 1
            if self._skipped > training.max_skipped_updates:
                raise TrainingError(
                    f"{what} {training.max_skipped_updates} updates were skipped before it, and "
                    f"training.max_skipped_updates allows no more. {advice} {replay}"
                )
            self._say(f"{what} The update was skipped. {replay}")
        means = {name: float(np.mean([values[name] for values in sound])) for name in sound[0]} if sound else {}
        if any(SKIPPED in values for values in terms):
            means[SKIPPED] = float(len(terms) - len(sound))
        return means


def _sentence(wrong: dict[str, float], step: int) -> str:
    """Which terms are not finite, without a full stop."""
    if not wrong:
        return f"The update is not finite at step {step}, although loss and gradient are"
    first = "loss" if "loss" in wrong else next(iter(wrong))
    others = ", ".join(name for name in wrong if name != first)
    also = f" (also {others})" if others else ""
    return f"The {first.replace('_', ' ')} is {wrong[first]} at step {step}{also}"


def check_state(state: TrainState) -> None:
    """Checks that parameters, optimizer state and EMA are finite, so that a broken state never becomes a checkpoint.

    Raises:
      TrainingError: a value is not finite.
    """
    trees = {"parameters": state.params, "optimizer state": state.opt_state, "EMA": state.ema}
    for name, tree in trees.items():
        if not _all_finite(tree):
            raise TrainingError(
                f"After step {int(state.step)} the {name} of the model hold values that are not finite, although the "
                f"loss was finite. They were not saved. {_ADVICE}"
            )


@jax.jit
def _all_finite(tree: object) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.array([jnp.isfinite(x).all() for x in leaves]).all() if leaves else jnp.array(True)


def _images(step: int, resolved: Resolved) -> str:
    """The ids of the images of a step, as they are planned."""
    ids = [str(resolved.train_source.image_ids[image.source_index]) for image in resolved.plan[step - 1].images]
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more
