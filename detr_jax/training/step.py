"""The training step: a pure function that is compiled for a mesh of devices."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int

from detr_jax.config import Config, OnNonfinite
from detr_jax.losses import set_loss
from detr_jax.sharding import Tree, batch_sharding, replicated, state_shardings
from detr_jax.structures import Array, BatchInputs
from detr_jax.training.state import PartitionedModel, TrainState, train_state_shardings

SKIPPED = "skipped_updates"
"""The term that says whether an update was skipped; the log has the number since the line before."""

TrainStep = Callable[[TrainState, Tree, BatchInputs], tuple[TrainState, dict[str, jax.Array]]]


def create_train_step(
    model: PartitionedModel, optimizer: optax.GradientTransformation, config: Config, mesh: Mesh
) -> TrainStep:
    """Builds ``step(state, frozen, batch) -> (state, terms)``.

    The batch is sharded along the mesh's axis "data". The state is sharded by `train_state_shardings`, and donated.
    Dropout depends only on the seed and the number of the step. ``terms`` holds the terms of `set_loss`, the ``loss``,
    and the ``gradient_norm`` before clipping, each [] float32.

    If ``training.on_nonfinite`` is "skip", a step whose loss, gradient or update is not finite only counts up the step,
    and ``terms`` holds `SKIPPED`, which is 1 for such a step and 0 for the others.
    """
    shardings = train_state_shardings(model, optimizer, config, mesh)
    gradients = create_gradients(model, config, mesh)

    def step(state: TrainState, frozen: Tree, batch: BatchInputs) -> tuple[TrainState, dict[str, jax.Array]]:
        key = dropout_key(config, state.step)
        (loss, terms), gradient = gradients(state.params, frozen, batch, key)
        if config.training.fsdp:
            gradient = jax.lax.with_sharding_constraint(gradient, shardings.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            decay = config.training.ema_decay
            ema = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, params)
        terms = {"loss": loss, **terms, "gradient_norm": optax.tree.norm(gradient)}
        found = TrainState(state.step + 1, params, opt_state, ema)
        if config.training.on_nonfinite == OnNonfinite.SKIP:
            sound = jnp.isfinite(jnp.stack([loss, terms["gradient_norm"], optax.tree.norm(updates)])).all()
            found = jax.tree.map(partial(jnp.where, sound), found, dataclasses.replace(state, step=found.step))
            terms[SKIPPED] = 1.0 - sound.astype(jnp.float32)
        return found, terms

    frozen_shardings = state_shardings(model.frozen, mesh, config.training.fsdp)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, frozen_shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
    )


def dropout_key(config: Config, step: Int[Array, ""]) -> jax.Array:
    """The key of the dropout after ``step`` finished steps."""
    return jax.random.fold_in(jax.random.key(config.training.seed), step)


LossAndGradient = tuple[tuple[jax.Array, dict[str, jax.Array]], Tree]
"""The loss [] with its terms, and the gradient."""


def create_gradients(
    model: PartitionedModel, config: Config, mesh: Mesh
) -> Callable[[Tree, Tree, BatchInputs, jax.Array], LossAndGradient]:
    """Builds ``gradients(params, frozen, batch, key) -> ((loss, terms), gradient)``.

    With ``training.accumulate`` above 1, micro-batches are computed one after another and their gradients are added.
    """
    micro_batches = config.training.accumulate

    def gather(tree: Tree) -> Tree:
        return jax.lax.with_sharding_constraint(tree, replicated(mesh)) if config.training.fsdp else tree

    def loss_of(
        params: Tree, frozen: Tree, batch: BatchInputs, counts: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        module = model.merge(gather(params), gather(frozen))
        images = module.normalize(batch.images, batch.valid_sizes)
        outputs = module(images, batch.valid_sizes, targets=batch.targets, rngs=nnx.Rngs(dropout=key))
        return set_loss(
            outputs,
            batch.targets,
            config.loss,
            mesh=mesh,
            batch_counts=counts,
            detector=module,
            valid_sizes=batch.valid_sizes,
        )

    def gradients(params: Tree, frozen: Tree, batch: BatchInputs, key: jax.Array) -> LossAndGradient:
        counts = batch.targets.count
        gradient_of = jax.value_and_grad(loss_of, has_aux=True)
        if micro_batches == 1:
            return gradient_of(params, frozen, batch, counts, key)

        def add(total: Tree, micro_batch: tuple[BatchInputs, jax.Array]) -> tuple[Tree, None]:
            inputs, dropout_key = micro_batch
            return jax.tree.map(jnp.add, total, gradient_of(params, frozen, inputs, counts, dropout_key)), None

        split = jax.tree.map(lambda x: _split(x, micro_batches, mesh), batch)
        keys = jax.random.split(key, micro_batches)
        shapes = jax.eval_shape(gradient_of, params, frozen, jax.tree.map(lambda x: x[0], split), counts, key)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        ((loss, terms), gradient), _ = jax.lax.scan(add, zeros, (split, keys))
        return (loss, terms), gradient

    return gradients


def _split(x: jax.Array, micro_batches: int, mesh: Mesh) -> jax.Array:
    """[B, ...] to [micro-batches, B / micro-batches, ...]. Every device keeps its own images."""
    x = x.reshape(x.shape[0] // micro_batches, micro_batches, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(None, "data")))
