"""Repeats a step whose loss or gradient was not finite, and finds the terms, images and parameters at fault."""

import itertools
import math
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from detr_jax.checkpoints import DamagedCheckpointError, checkpoints_of
from detr_jax.config import Config, ConfigError, Precision
from detr_jax.data import batches
from detr_jax.sharding import Tree, create_mesh, shard, shard_rows, state_shardings
from detr_jax.structures import BatchInputs
from detr_jax.training import checkpointing
from detr_jax.training.error import TrainingError
from detr_jax.training.failed_batch import read_failed_batch, step_of
from detr_jax.training.initial_weights import initial_model
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.resolve import Resolved, resolve
from detr_jax.training.state import PartitionedModel, TrainState, abstract_model, create_state, initialize_missing
from detr_jax.training.step import create_gradients, create_train_step, dropout_key
from detr_jax.weights.trees import by_path
from detr_jax.workdir import read_run_config


@dataclass(frozen=True)
class StepNumbers:
    """The numbers of one step."""

    terms: dict[str, float]
    """The loss, its terms and the ``gradient_norm``."""
    parameters: tuple[str, ...]
    """The paths of the parameters whose gradient is not finite."""

    @property
    def wrong(self) -> tuple[str, ...]:
        """The names of the terms that are not finite."""
        return tuple(name for name, value in self.terms.items() if not math.isfinite(value))


@dataclass(frozen=True)
class Replay:
    """What a repeated step gave."""

    step: int
    start: int
    """The step of the checkpoint from which the steps before were done again; 0 for the beginning of the run."""
    whole: StepNumbers
    """The numbers of the whole batch."""
    images: dict[int, StepNumbers]
    """The numbers of a batch that holds nothing but one image, by the image's id."""
    parameters: tuple[str, ...]
    """The paths of the parameters that are not finite before the step."""
    updates: tuple[str, ...]
    """The paths of the parameters whose update is not finite."""


def replay(path: Path, *, dtype: str | None = None, say: Callable[[str], None] = print) -> Replay:
    """Repeats the step of a batch that a run has written. Nothing of the run is changed, and it may go on meanwhile.

    The state before the step is that of the newest sound checkpoint before it, after the steps in between are done
    again.

    Args:
      path: ``WORKDIR/nonfinite/STEP.npz``.
      dtype: computes the step in "float32" or "bfloat16". By default in ``model.dtype`` of the run.
      say: receives sentences about the progress.

    Raises:
      TrainingError: the file is not such a batch.
      ConfigError, DataError, CheckpointError: configuration, data, or checkpoint of the run cannot be read.
    """
    step = step_of(path)
    batch, image_ids = read_failed_batch(path)
    workdir = path.absolute().parent.parent
    given = read_run_config(workdir)
    if given is None:
        raise ConfigError(f"{workdir} has no config.json: {path} must be in the workdir of its run.")
    mesh = create_mesh()
    resolved = resolve(given, workdir, mesh)
    if len(image_ids) != resolved.config.training.batch_size or step > resolved.total_steps:
        raise TrainingError(f"{path} does not belong to the run of {workdir / 'config.json'}.")
    config = resolved.config
    optimizer = create_optimizer(config.optimizer, resolved.total_steps, resolved.plan.steps_per_epoch)
    model, state, frozen = _state_before(resolved, workdir, step, optimizer, mesh)
    start = int(state.step)
    say(f"repeating the steps {start + 1} to {step - 1}" if start < step - 1 else f"starting at step {start}")
    state = _redone(resolved, model, optimizer, state, frozen, step - 1, mesh)
    if dtype is not None:
        config.model.dtype = Precision(dtype)
        model = abstract_model(config)
    return _numbers(config, model, optimizer, state, frozen, batch, image_ids, start, mesh)


def _state_before(
    resolved: Resolved, workdir: Path, step: int, optimizer: optax.GradientTransformation, mesh: Mesh
) -> tuple[PartitionedModel, TrainState, Tree]:
    """The model, and the newest sound state and the frozen parameters that a run saved before a step.

    If there is none, those before the first step.
    """
    config = resolved.config
    abstract = abstract_model(config)
    for checkpoint in checkpoints_of(workdir):
        if int(checkpoint.name) < step:
            with suppress(DamagedCheckpointError):  # or the run deletes it now
                return abstract, *checkpointing.restore(checkpoint, abstract, optimizer, config, mesh)
    model = initialize_missing(initial_model(resolved, is_new=True)[0], config)
    frozen = shard(model.frozen, state_shardings(model.frozen, mesh, config.training.fsdp))
    return model.abstract, create_state(model, optimizer, config, mesh), frozen


def _redone(
    resolved: Resolved,
    model: PartitionedModel,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: Tree,
    end: int,
    mesh: Mesh,
) -> TrainState:
    """The state after the steps up to ``end``."""
    config, start = resolved.config, int(state.step)
    if start == end:
        return state
    train_step = create_train_step(model, optimizer, config, mesh)
    stream = batches(resolved.plan, resolved.train_source, config.training.batch_size, config.data, start=start)
    with closing(stream):
        for batch in itertools.islice(stream, end - start):
            state, terms = train_step(state, frozen, shard_rows(batch.inputs, mesh))
            jax.block_until_ready(terms)
    return state


def _numbers(
    config: Config,
    model: PartitionedModel,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    frozen: Tree,
    batch: BatchInputs,
    image_ids: list[int],
    start: int,
    mesh: Mesh,
) -> Replay:
    gradients = jax.jit(create_gradients(model, config, mesh))
    key = dropout_key(config, state.step)

    def numbers(inputs: BatchInputs) -> tuple[StepNumbers, Tree]:
        (loss, terms), gradient = gradients(state.params, frozen, shard_rows(inputs, mesh), key)
        values = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(gradient)}
        return StepNumbers({name: float(value) for name, value in values.items()}, _broken(gradient)), gradient

    whole, gradient = numbers(batch)
    updates, _ = jax.jit(optimizer.update)(gradient, state.opt_state, state.params)
    images = {}
    for row, image_id in enumerate(image_ids):
        if image_id >= 0:
            alone = jax.tree.map(lambda x, row=row: np.repeat(x[row : row + 1], len(x), axis=0), batch)
            images[image_id], _ = numbers(alone)
    return Replay(int(state.step) + 1, start, whole, images, _broken(state.params), _broken(updates))


def _broken(tree: Tree) -> tuple[str, ...]:
    """The paths of the arrays of a pure tree that are not finite."""
    return tuple(path for path, x in by_path(tree).items() if not np.isfinite(np.asarray(x)).all())
