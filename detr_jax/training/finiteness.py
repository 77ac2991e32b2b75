"""Checks that the numbers of a training are finite: the terms of every step, and the state before it is saved."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from detr_jax.training.error import TrainingError
from detr_jax.training.resolve import Resolved
from detr_jax.training.state import TrainState

_NAMED = 8  # images in a message
_ADVICE = "Lower optimizer.learning_rate, add optimizer.warmup_steps, or train in float32."


def finite_means(terms: Sequence[dict[str, np.ndarray]], step: int, resolved: Resolved) -> dict[str, float]:
    """The mean of each term over some steps, the last of which is ``step``.

    Raises:
      TrainingError: a term is not finite. The message has the step, the terms, and the images of the step.
    """
    for i, values in enumerate(terms):
        wrong = {name: float(value) for name, value in values.items() if not np.isfinite(value)}
        if not wrong:
            continue
        at = step - len(terms) + i + 1
        first = "loss" if "loss" in wrong else next(iter(wrong))
        others = ", ".join(name for name in wrong if name != first)
        also = f" (also {others})" if others else ""
        raise TrainingError(
            f"The {first.replace('_', ' ')} is {wrong[first]} at step {at}{also}, for the images "
            f"{_images(at, resolved)}. {_ADVICE} The last checkpoint was saved before this step."
        )
    return {name: float(np.mean([values[name] for values in terms])) for name in terms[0]}


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
                f"loss was finite. They were not saved. {_ADVICE} The last checkpoint is from an earlier step."
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
