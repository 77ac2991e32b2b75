"""What a run finds in its workdir, and its state on the way to a checkpoint and back."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from detr_jax.checkpoints import Checkpoints
from detr_jax.config import Config, ConfigError, differences, from_json
from detr_jax.sharding import Tree, shard, state_shardings
from detr_jax.training.step import Model, TrainState, outline_state


def has_checkpoint(workdir: Path) -> bool:
    return any(child.name.isdigit() for child in (workdir / "checkpoints").glob("*"))


def previous_config(workdir: Path) -> Config | None:
    """The configuration of an earlier run in this workdir, if it has left a checkpoint."""
    path = workdir / "config.json"
    if not path.exists() or not has_checkpoint(workdir):
        return None
    try:
        return from_json(path.read_text())
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged ({error}) Take it away to go on with the configuration given.") from None


def changes(previous: Config, config: Config, workdir: Path) -> dict[str, tuple[Any, Any]]:
    """Fields that changed since an earlier run in this workdir; refuses those that its checkpoints cannot follow."""
    changed = differences(previous, config)
    for name, (old, new) in changed.items():
        if name.startswith("model.") and name not in ("model.dropout", "model.dtype", "model.remat"):
            raise ConfigError(
                f"{name} was {old!r} when {workdir} was trained and is {new!r} now: "
                "set it back, or choose another --workdir."
            )
    return changed


def restore(
    checkpoints: Checkpoints, model: Model, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh
) -> tuple[TrainState, Tree]:
    """State and frozen values of the newest checkpoint, laid out for the mesh; of the model only shapes are read."""
    step = checkpoints.latest_step
    assert step is not None
    shapes = outline_state(model, optimizer, config), model.structure.frozen
    state, frozen = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh, config.training.fsdp),
    )
    targets = {"params": model.whole(state.params, frozen), "optimizer": state.optimizer}
    if state.ema is not None:
        targets["ema"] = model.whole(state.ema, frozen)
    parts = checkpoints.restore(step, targets)
    params, frozen = model.split(parts["params"])
    ema = None if state.ema is None else model.split(parts["ema"])[0]
    return TrainState(shard(np.int32(step), state.step.sharding), params, parts["optimizer"], ema), frozen


def save(checkpoints: Checkpoints, model: Model, state: TrainState, frozen: Tree, config: Config) -> None:
    if checkpoints.latest_step == int(state.step):
        return
    trees = {"params": model.whole(state.params, frozen), "optimizer": state.optimizer}
    if state.ema is not None:
        trees["ema"] = model.whole(state.ema, frozen)
    checkpoints.save(int(state.step), trees, config)
