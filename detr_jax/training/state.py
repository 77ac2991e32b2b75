"""The model and the state of training as pure trees of arrays, and their abstract forms (shapes without values)."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from detr_jax.config import Config
from detr_jax.data.batching import mask_shape
from detr_jax.models.detector import DetectorModule
from detr_jax.sharding import Tree, shard, state_shardings
from detr_jax.structures import BatchInputs, Targets, structure
from detr_jax.training.optimizer import check_parameter_names, is_trainable


@structure
class TrainState:
    """Everything that a step changes."""

    step: jax.Array
    """[] int32, the number of optimizer steps done."""
    params: Tree
    """The trainable parameters, float32."""
    opt_state: Tree
    """The state of the optimizer."""
    ema: Tree | None
    """EMA of the trainable parameters; None if ``training.ema_decay`` is 0."""

    @property
    def eval_params(self) -> Tree:
        """The trainable parameters that validation uses: the EMA if there is one, else ``params``."""
        return self.params if self.ema is None else self.ema


@dataclass(frozen=True, eq=False)
class PartitionedModel:
    """A detector with its graph, trainable and frozen parameters separated, so that steps are pure functions.

    The trees hold arrays, or abstract arrays (`jax.ShapeDtypeStruct`).
    """

    graphdef: nnx.GraphDef
    trainable: nnx.filterlib.Filter
    """Selects the trainable parameters."""
    params: Tree
    """The trainable parameters."""
    frozen: Tree
    """Frozen parameters and statistics. No gradient is computed for them."""

    @property
    def abstract(self) -> "PartitionedModel":
        """The same model with abstract arrays. It does not keep the memory of the parameters."""
        return dataclasses.replace(self, params=_abstract(self.params), frozen=_abstract(self.frozen))

    @property
    def full_tree(self) -> Tree:
        """The tree of all parameters and statistics of the model."""
        return self.join(self.params, self.frozen)

    def merge(self, params: Tree, frozen: Tree) -> DetectorModule:
        """The module with these parameters."""
        return nnx.merge(self.graphdef, params, frozen)

    def join(self, params: Tree, frozen: Tree) -> Tree:
        """Joins trainable and frozen parameters to the tree of the full model, as checkpoints hold it."""
        return nnx.as_pure(nnx.state(self.merge(params, frozen)))

    def split(self, tree: Tree) -> tuple[Tree, Tree]:
        """Splits the tree of the full model into trainable and frozen parameters."""
        _, *states = nnx.split(nnx.merge(self.graphdef, tree), self.trainable, ...)
        params, frozen = map(nnx.as_pure, states)
        return params, frozen

    def with_tree(self, tree: Tree) -> "PartitionedModel":
        """The same model with the parameters of a full tree."""
        params, frozen = self.split(tree)
        return dataclasses.replace(self, params=params, frozen=frozen)


def create_model(config: Config) -> PartitionedModel:
    """A model whose parameters are initialized from the seed.

    Raises:
      ConfigError: ``optimizer.frozen`` names parameters that the model does not have.
    """
    return initialize_missing(abstract_model(config), config)


def abstract_model(config: Config) -> PartitionedModel:
    """The model of `create_model` with abstract arrays. Nothing is computed.

    Raises:
      ConfigError: ``optimizer.frozen`` names parameters that the model does not have.
    """
    abstract = nnx.eval_shape(lambda: config.model.build(rngs=nnx.Rngs(0)))
    check_parameter_names(config, nnx.as_pure(nnx.state(abstract, nnx.Param)))
    trainable = is_trainable(config)
    params, frozen = (nnx.as_pure(state) for state in nnx.split(abstract, trainable, ...)[1:])
    return PartitionedModel(nnx.graphdef(abstract), trainable, params, frozen)


def initialize_missing(model: PartitionedModel, config: Config) -> PartitionedModel:
    """Initializes the parameters that are abstract from the seed. One compiled function computes only these."""
    leaves, treedef = jax.tree.flatten((model.params, model.frozen))
    is_missing = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves]

    @jax.jit
    def initial_params() -> list[jax.Array]:
        module = config.model.build(rngs=nnx.Rngs(config.training.seed))
        states = tuple(nnx.as_pure(state) for state in nnx.split(module, model.trainable, ...)[1:])
        return list(itertools.compress(jax.tree.leaves(states), is_missing))

    if any(is_missing):
        initialized = iter(initial_params())
        leaves = [next(initialized) if missing else leaf for leaf, missing in zip(leaves, is_missing, strict=True)]
    params, frozen = jax.tree.unflatten(treedef, leaves)
    return dataclasses.replace(model, params=params, frozen=frozen)


def create_state(
    model: PartitionedModel, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh
) -> TrainState:
    """The state before the first step, sharded by `train_state_shardings`."""
    shardings = train_state_shardings(model, optimizer, config, mesh)
    initial_state = jax.jit(_initial_state(optimizer, config), out_shardings=shardings)
    return initial_state(shard(model.params, shardings.params))


def abstract_state(model: PartitionedModel, optimizer: optax.GradientTransformation, config: Config) -> TrainState:
    """The state of `create_state` with abstract arrays."""
    return jax.eval_shape(_initial_state(optimizer, config), model.params)


def abstract_batch(config: Config, bucket: tuple[int, int], max_objects: int) -> BatchInputs:
    """A training batch of a bucket with abstract arrays.

    Args:
      config: the batch size is ``training.batch_size``.
      bucket: (height, width) in pixels.
      max_objects: the largest number of objects in an image of the data.
    """
    size, objects = config.training.batch_size, max(1, max_objects)

    def array(*shape: int, dtype: DTypeLike = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((size, *shape), dtype)

    masks = array(*mask_shape(objects, bucket), dtype=jnp.uint8) if config.data.masks else None
    targets = Targets(array(objects, 4, dtype=jnp.float32), array(objects), array(), masks)
    return BatchInputs(array(*bucket, 3, dtype=jnp.uint8), array(2), targets)


def train_state_shardings(
    model: PartitionedModel, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh
) -> TrainState:
    """The sharding of each array of the state: replicated, or sharded with ``training.fsdp``."""
    return state_shardings(abstract_state(model, optimizer, config), mesh, config.training.fsdp)


def _initial_state(optimizer: optax.GradientTransformation, config: Config) -> Callable[[Tree], TrainState]:
    def initial(params: Tree) -> TrainState:
        ema = jax.tree.map(jnp.copy, params) if config.training.ema_decay else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)

    return initial


def _abstract(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
