"""The memory that a training step takes, known from its compiled program before anything is trained."""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from detr_jax.config import Config
from detr_jax.matching import Targets
from detr_jax.models.detr import DETR
from detr_jax.training.optimizer import create_optimizer, is_trainable
from detr_jax.training.step import DeviceBatch, Model, TrainState, create_train_step


class StepMemory(NamedTuple):
    """Bytes on each device, as the compiler plans them."""

    state: int
    """Parameters, optimiser and the batch: what the step is given."""
    temporary: int
    """Activations, gradients and all else that lives within the step."""

    @property
    def total(self) -> int:
        """What a device needs for this step, besides the runtime's own."""
        return self.state + self.temporary


def step_memory(config: Config, canvas: tuple[int, int], max_objects: int, mesh: Mesh) -> StepMemory:
    """The memory of the training step of a canvas, by the program of `compile_step`, whose arguments these are.

    Raises:
      NotImplementedError: the compiler for these devices does not tell.
    """
    planned = compile_step(config, canvas, max_objects, mesh).memory_analysis()
    if planned is None:
        raise NotImplementedError("The compiler for these devices does not tell the memory that a program takes.")
    given = planned.argument_size_in_bytes
    return StepMemory(given, planned.temp_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes)


def compile_step(config: Config, canvas: tuple[int, int], max_objects: int, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles the training step of a canvas for the mesh's devices, from shapes alone, without allocating anything.

    Args:
      config: model, optimiser and batch size.
      canvas: (height, width) in pixels.
      max_objects: the most objects of an image in the data.
      mesh: the devices that the batch is shared out over.
    """
    abstract = nnx.eval_shape(lambda: DETR(config.model, rngs=nnx.Rngs(0)))
    trainable = is_trainable(config.optimizer)
    params, frozen = (nnx.as_pure(state) for state in nnx.split(abstract, trainable, ...)[1:])
    model = Model(nnx.graphdef(abstract), trainable, params, frozen)
    optimizer = create_optimizer(config.optimizer, 1, 1)

    def initial_state(params: nnx.State) -> TrainState:
        ema = params if config.training.ema_decay else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)

    size, objects = config.training.batch_size, max(1, max_objects)
    batch = jax.eval_shape(
        lambda: DeviceBatch(
            jnp.zeros((size, *canvas, 3), jnp.uint8),
            jnp.zeros((size, 2), jnp.int32),
            Targets(jnp.zeros((size, objects, 4)), jnp.zeros((size, objects), jnp.int32), jnp.zeros(size, jnp.int32)),
        )
    )
    step = cast(jax.stages.Wrapped, create_train_step(model, optimizer, config, mesh))
    return step.lower(jax.eval_shape(initial_state, params), frozen, batch).compile()
