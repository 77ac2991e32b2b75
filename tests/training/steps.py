"""Some steps of training on drawn shapes, without a workdir."""

from typing import Any

import jax
import pytest

from detr_jax.config import Config
from detr_jax.data import ShapesDataset, TrainPlan, batches
from detr_jax.sharding import create_mesh, shard, state_shardings
from detr_jax.structures import BatchInputs
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.state import TrainState, create_model, create_state
from detr_jax.training.step import create_train_step


def first_batches(config: Config, count: int) -> list[BatchInputs]:
    """What the first ``count`` training steps read."""
    source = ShapesDataset(config.data.sources["shapes"], "train", masks=config.data.masks)
    size = config.training.batch_size
    stream = batches(TrainPlan(source, config.data, size, seed=1), source, size, config.data)
    return [batch.inputs for batch, _ in zip(stream, range(count), strict=False)]


def run_steps(config: Config, devices: int, steps: int) -> tuple[Any, TrainState, list[dict[str, Any]]]:
    """The parameters before some steps on this many devices, the state after them, and the terms of each step."""
    mesh, model = create_mesh(jax.devices()[:devices]), create_model(config)
    optimizer = create_optimizer(config.optimizer, 10, 5)
    state = create_state(model, optimizer, config, mesh)
    frozen = shard(model.frozen, state_shardings(model.frozen, mesh, config.training.fsdp))
    before = jax.device_get(state.params)
    step = create_train_step(model.abstract, optimizer, config, mesh)
    terms = []
    for batch in first_batches(config, steps):
        state, values = jax.block_until_ready(step(state, frozen, batch))
        terms.append(jax.device_get(values))
    return before, jax.device_get(state), terms


def losses_of_steps(config: Config, devices: int = 1) -> tuple[Any, list[dict[str, Any]]]:
    """The parameters after two steps, and the loss and its terms of each step."""
    _, state, terms = run_steps(config, devices, steps=2)
    return state.params, [{name: value for name, value in x.items() if name.startswith("loss")} for x in terms]


def assert_equal_losses(run: tuple[Any, list[dict[str, Any]]], plain: tuple[Any, list[dict[str, Any]]], rtol: float):
    """Compares the losses of two results of `losses_of_steps`."""
    for ours, expected in zip(run[1], plain[1], strict=True):
        assert ours.keys() == expected.keys()
        for name, value in ours.items():
            assert value == pytest.approx(expected[name], rel=rtol, abs=1e-4), name
