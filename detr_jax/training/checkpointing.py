"""Saves the training state as checkpoints, and restores it."""

from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from detr_jax.checkpoints import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpointError,
    all_checkpoints,
    check_step,
    damaged_error,
    restore_parts,
)
from detr_jax.config import Config
from detr_jax.memory import arrays_text, fitting
from detr_jax.sharding import Tree, shard, state_shardings
from detr_jax.training.state import PartitionedModel, TrainState, abstract_state, create_state, initialize_missing

_SMALLER_STATE = (
    "Make the model smaller (model.num_classes, model.num_queries, model.hidden_dim), set training.ema_decay=0, or "
    "shard the state over several devices with training.fsdp=True."
)


def restore_or_initialize(
    checkpoints: Checkpoints,
    model: PartitionedModel,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
    *,
    strict: bool = False,
) -> tuple[TrainState, Tree]:
    """The state of the newest sound checkpoint or, if there is no checkpoint, the state before the first step.

    Damaged checkpoints are moved to ``WORKDIR/damaged``, and ``checkpoints.notes`` says so.

    Args:
      checkpoints: the checkpoints of the run.
      model: parameters that are abstract are initialized from the seed. A checkpoint replaces all parameters.
      optimizer: the optimizer of the run.
      config: the configuration of the run.
      mesh: the devices.
      strict: raise if the newest checkpoint is damaged, instead of resuming from an earlier one.

    Returns:
      The state and the frozen parameters, sharded over the mesh.

    Raises:
      CheckpointError: the checkpoint does not fit the configuration, or all checkpoints are damaged. Then none is
        moved.
      OutOfMemoryError: the state does not fit into memory.
    """
    size = arrays_text({"state": abstract_state(model, optimizer, config), "frozen": model.frozen})
    with fitting(f"The state of the training (parameters, optimizer state, EMA: {size})", _SMALLER_STATE):
        damaged: dict[Path, DamagedCheckpointError] = {}
        for checkpoint in all_checkpoints(checkpoints.folder):
            try:
                found = restore(checkpoint, model, optimizer, config, mesh)
            except DamagedCheckpointError as error:
                if strict:
                    raise
                damaged[checkpoint] = error
                continue
            for one, why in damaged.items():
                place = checkpoints.set_aside(int(one.name))
                checkpoints.notes.append(f"{why} It was moved to {place}, and the run resumes from an earlier one.")
            return found
        if damaged:
            raise CheckpointError(
                f"No checkpoint of {checkpoints.folder} is sound: {', '.join(path.name for path in damaged)}. "
                f"{next(iter(damaged.values()))} To begin again, choose another --workdir."
            )
        model = initialize_missing(model, config)
        state = create_state(model, optimizer, config, mesh)
        return state, shard(model.frozen, state_shardings(model.frozen, mesh, config.training.fsdp))


def restore(
    checkpoint: Path,
    model: PartitionedModel,
    optimizer: optax.GradientTransformation,
    config: Config,
    mesh: Mesh,
) -> tuple[TrainState, Tree]:
    """The state and the frozen parameters of a checkpoint, sharded over the mesh.

    Only the shapes of ``model`` are read.

    Raises:
      CheckpointError: the checkpoint does not fit the configuration.
    """
    shapes = abstract_state(model, optimizer, config), model.abstract.frozen
    state, frozen = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh, config.training.fsdp),
    )
    if not (checkpoint / "params").is_dir():
        raise damaged_error(checkpoint, "its 'params' are missing")
    check_step(checkpoint)
    found = restore_parts(checkpoint, _checkpoint_trees(model, state, frozen))
    params, frozen = model.split(found["params"])
    ema = None if state.ema is None else model.split(found["ema"])[0]
    step = shard(np.int32(int(checkpoint.name)), state.step.sharding)
    return TrainState(step, params, found["optimizer"], ema), frozen


def save(checkpoints: Checkpoints, model: PartitionedModel, frozen: Tree, config: Config, state: TrainState) -> None:
    """Starts to save the state. The arrays may be changed or donated afterwards.

    Raises:
      CheckpointError: this save could not begin, or the save before could not be finished.
      OutOfMemoryError: the copy on the host does not fit into memory.
    """
    with fitting("The copy of the state for a checkpoint", "Use a machine with more memory."):
        checkpoints.save(int(state.step), _checkpoint_trees(model, state, frozen), config)


def _checkpoint_trees(model: PartitionedModel, state: TrainState, frozen: Tree) -> dict[str, Tree]:
    """The trees of a checkpoint by name."""
    trees = {"params": model.join(state.params, frozen), "optimizer": state.opt_state}
    if state.ema is not None:
        trees["ema"] = model.join(state.ema, frozen)
    return trees
