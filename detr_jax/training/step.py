"""The compiled training step: a pure function over a mesh of devices."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from detr_jax.config import Config
from detr_jax.losses import set_loss
from detr_jax.models.detector import DetectorModule
from detr_jax.sharding import Tree, batch_sharding, replicated, shard, state_shardings
from detr_jax.structures import BatchInputs, Targets
from detr_jax.training.optimizer import check_frozen, is_trainable


class TrainState(NamedTuple):
    """Everything that a step changes, as pure trees of arrays."""

    step: jax.Array
    """[] int32, optimiser steps done."""
    params: Tree
    """The trainable parameters, float32."""
    optimizer: Tree
    ema: Tree | None
    """Moving average of the trainable parameters, if there is one."""

    @property
    def evaluated(self) -> Tree:
        """What validation uses: the moving average where there is one, the parameters otherwise."""
        return self.params if self.ema is None else self.ema


class Model(NamedTuple):
    """A detector taken apart once, so that steps are pure functions of arrays."""

    graph: nnx.GraphDef
    trainable: nnx.filterlib.Filter
    params: Tree
    """Trainable parameters."""
    frozen: Tree
    """Frozen parameters and statistics; no gradient is ever computed for them."""

    @property
    def structure(self) -> "Model":
        """The same without values, which then need no memory."""
        return self._replace(params=_shapes(self.params), frozen=_shapes(self.frozen))

    def merge(self, params: Tree, frozen: Tree) -> DetectorModule:
        """The module with these values."""
        return nnx.merge(self.graph, params, frozen)

    def whole(self, params: Tree, frozen: Tree) -> Tree:
        """Trainable and frozen values as one tree."""
        return nnx.as_pure(nnx.state(self.merge(params, frozen)))

    def split(self, whole: Tree) -> tuple[Tree, Tree]:
        """Trainable and frozen values of one tree."""
        _, *states = nnx.split(nnx.merge(self.graph, whole), self.trainable, ...)
        params, frozen = map(nnx.as_pure, states)
        return params, frozen


def create_model(config: Config) -> Model:
    """A model with initial values from the seed.

    Raises:
      ConfigError: ``optimizer.frozen`` names parameters that the model has not.
    """
    return with_initial_values(outline_model(config), config)


def with_initial_values(model: Model, config: Config) -> Model:
    """The model with initial values from the seed in place of shapes; one program computes these and nothing else."""
    leaves, structure = jax.tree.flatten((model.params, model.frozen))
    is_missing = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]

    @jax.jit
    def initial_values() -> list[jax.Array]:
        fresh = config.model.build(rngs=nnx.Rngs(config.training.seed))
        states = tuple(nnx.as_pure(state) for state in nnx.split(fresh, model.trainable, ...)[1:])
        return list(itertools.compress(jax.tree.leaves(states), is_missing))

    if any(is_missing):
        fresh = iter(initial_values())
        leaves = [next(fresh) if missing else leaf for leaf, missing in zip(leaves, is_missing, strict=True)]
    params, frozen = jax.tree.unflatten(structure, leaves)
    return model._replace(params=params, frozen=frozen)


def outline_model(config: Config) -> Model:
    """The model of `create_model` with shapes in place of values; nothing is computed.

    Raises:
      ConfigError: as `create_model`.
    """
    abstract = nnx.eval_shape(lambda: config.model.build(rngs=nnx.Rngs(0)))
    check_frozen(config, nnx.as_pure(nnx.state(abstract, nnx.Param)))
    trainable = is_trainable(config)
    graph = nnx.graphdef(abstract)
    params, frozen = (nnx.as_pure(state) for state in nnx.split(abstract, trainable, ...)[1:])
    return Model(graph, trainable, params, frozen)


def create_state(model: Model, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh) -> TrainState:
    """The state before the first step, laid out by `state_layout`."""
    where = state_layout(model, optimizer, config, mesh)
    return jax.jit(_initial_state(optimizer, config), out_shardings=where)(shard(model.params, where.params))


def outline_state(model: Model, optimizer: optax.GradientTransformation, config: Config) -> TrainState:
    """The state of `create_state` with shapes in place of values."""
    return jax.eval_shape(_initial_state(optimizer, config), model.params)


def outline_batch(config: Config, bucket: tuple[int, int], max_objects: int) -> BatchInputs:
    """A batch of a bucket (height, width) in pixels, with shapes in place of values.

    Args:
      max_objects: the most objects of an image in the data.
    """
    size, objects = config.training.batch_size, max(1, max_objects)

    def array(*shape: int, dtype: DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype)

    targets = Targets(array(objects, 4, dtype=jnp.float32), array(objects), array())
    return BatchInputs(array(*bucket, 3, dtype=jnp.uint8), array(2), targets)


def state_layout(model: Model, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh) -> TrainState:
    """The sharding of each array of the state: whole on every device or, with ``training.fsdp``, shared out."""
    return state_shardings(outline_state(model, optimizer, config), mesh, config.training.fsdp)


def _initial_state(optimizer: optax.GradientTransformation, config: Config) -> Callable[[Tree], TrainState]:
    def initial(params: Tree) -> TrainState:
        ema = jax.tree.map(jnp.copy, params) if config.training.ema_decay else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)

    return initial


def _shapes(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


TrainStep = Callable[[TrainState, Tree, BatchInputs], tuple[TrainState, dict[str, jax.Array]]]


def create_train_step(model: Model, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh) -> TrainStep:
    """Builds ``step(state, frozen, batch) -> (state, terms)``.

    The batch is sharded over the mesh's axis "data", the state lies as `state_layout` says and is donated. Dropout
    follows from the seed and the number of the step alone. ``terms`` are those of `set_loss`, and ``loss`` and
    ``gradient_norm`` (before clipping), all [] float32.
    """
    parts = config.training.accumulate
    everywhere = replicated(mesh)
    where = state_layout(model, optimizer, config, mesh)

    def gather(tree: Tree) -> Tree:
        return jax.lax.with_sharding_constraint(tree, everywhere) if config.training.fsdp else tree

    def loss_of(
        params: Tree, frozen: Tree, batch: BatchInputs, counts: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        module = model.merge(gather(params), gather(frozen))
        images = module.normalize(batch.images, batch.valid_sizes)
        outputs = module(images, batch.valid_sizes, targets=batch.targets, rngs=nnx.Rngs(dropout=key))
        return set_loss(outputs, batch.targets, config.loss, mesh=mesh, batch_counts=counts)

    def step(state: TrainState, frozen: Tree, batch: BatchInputs) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(config.training.seed), state.step)
        counts = batch.targets.count
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)

        if parts == 1:
            (loss, terms), gradient = gradient_of(state.params, frozen, batch, counts, key)
        else:

            def add_part(total: Tree, part: tuple[BatchInputs, jax.Array]) -> tuple[Tree, None]:
                value = gradient_of(state.params, frozen, part[0], counts, part[1])
                return jax.tree.map(jnp.add, total, value), None

            split = jax.tree.map(lambda x: _split_parts(x, parts, mesh), batch)
            keys = jax.random.split(key, parts)
            shapes = jax.eval_shape(gradient_of, state.params, frozen, jax.tree.map(lambda x: x[0], split), counts, key)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            ((loss, terms), gradient), _ = jax.lax.scan(add_part, zeros, (split, keys))

        if config.training.fsdp:
            gradient = jax.lax.with_sharding_constraint(gradient, where.params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            decay = config.training.ema_decay
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
        terms = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(gradient)}
        return TrainState(state.step + 1, params, optimizer_state, ema), terms

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(where, state_shardings(model.frozen, mesh, config.training.fsdp), batch_sharding(mesh)),
        out_shardings=(where, everywhere),
    )


def _split_parts(x: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """[B, ...] to [parts, B / parts, ...], every device keeping its own images."""
    x = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, "data")))
