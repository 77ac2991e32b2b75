"""This project's side: a detector with the peer's weights, its forward pass and its training step."""

import math
import tempfile
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from inputs import Inputs
from models import MODELS

from detr_jax.config import Config
from detr_jax.matching import Targets
from detr_jax.models.detector import DetectorModule, abstract_model
from detr_jax.sharding import batch_sharding, create_mesh, replicated
from detr_jax.structures import BatchInputs
from detr_jax.training.optimizer import create_optimizer, is_trainable
from detr_jax.training.state import PartitionedModel, create_state
from detr_jax.training.step import create_train_step
from detr_jax.weights import load_pretrained

PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": None}


def set_precision(dtype: str) -> None:
    """Makes float32 products IEEE's, or TF32 on a GPU where ``dtype`` says so."""
    jax.config.update("jax_default_matmul_precision", PRECISIONS[dtype])


class Compiled(NamedTuple):
    """A compiled program with what its compiler says of it."""

    run: Any
    flops: float
    """Of one call, from the cost analysis of the program before optimisation: nothing recomputed, padding included."""
    memory: int
    """Bytes of arguments, results and temporaries."""
    seconds: float
    """Time that tracing and compiling took."""


def compile_program(function: Any, *args: Any) -> Compiled:
    """Compiles a jitted function for these arguments."""
    start = time.perf_counter()
    lowered = function.lower(*args)
    cost: Any = lowered.cost_analysis() or {}
    compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    total = sum(getattr(memory, f"{part}_size_in_bytes") for part in ("argument", "output", "temp"))
    total -= memory.alias_size_in_bytes
    return Compiled(compiled, float(cost.get("flops", math.nan)), total, time.perf_counter() - start)


def create_model(peer: Any, kind: str = "detr") -> DetectorModule:
    """The peer's weights, through the import of Hugging Face checkpoints; random ones without a peer."""
    if peer is None:
        return MODELS[kind].config().build(rngs=nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as folder:
        peer.save(folder)
        return load_pretrained(folder)


def model_fields(dtype: str) -> dict[str, str]:
    """The fields of a detector that computes in "float32" ("tf32" too) or "bfloat16"."""
    return {"dtype": "bfloat16" if dtype == "bfloat16" else "float32"}


class Forward:
    """The compiled forward pass on one batch of normalised images."""

    def __init__(self, model: DetectorModule, inputs: Inputs, dtype: str, kind: str = "detr"):
        graph = abstract_model(MODELS[kind].config(**model_fields(dtype)))[0]
        values = nnx.as_pure(nnx.state(model))

        def predict(values: Any, images: jax.Array, sizes: jax.Array) -> tuple[jax.Array, ...]:
            module = nnx.merge(graph, values)
            predictions = module(images, sizes)
            answers = predictions.logits[-1], predictions.boxes[-1]
            if predictions.mask_features is None:
                return answers
            batch, queries = answers[0].shape[:2]
            every = jnp.broadcast_to(jnp.arange(queries)[None], (batch, queries))
            masks = module.mask_logits(predictions.mask_features, every)
            rows, columns = (-(-side // 4) for side in inputs.sizes[0].tolist())
            return *answers, masks[:, :, :rows, :columns]

        sizes = jnp.asarray(inputs.sizes)
        self._args = (values, model.normalize(jnp.asarray(inputs.images), sizes), sizes)
        self.program = compile_program(jax.jit(predict), *self._args)

    def outputs(self) -> tuple[np.ndarray, ...]:
        """Logits [B, Q, C + 1] and boxes [B, Q, 4] of the last layer, and mask logits if there are any."""
        return jax.device_get(self.program.run(*self._args))

    def __call__(self, calls: int) -> None:
        for _ in range(calls):
            result = self.program.run(*self._args)
        jax.block_until_ready(result)


class TrainStep:
    """The compiled training step on one batch of uint8 images, with dropout on."""

    def __init__(self, model: DetectorModule, inputs: Inputs, dtype: str, matcher: str, kind: str = "detr"):
        config = Config(model=MODELS[kind].config(**model_fields(dtype)), loss=MODELS[kind].loss())
        config.loss.matcher = matcher
        trainable = is_trainable(config)
        graph = abstract_model(config.model)[0]
        # copies: the step gives the memory of its state back
        params, frozen = (jax.tree.map(jnp.copy, nnx.as_pure(x)) for x in nnx.split(model, trainable, ...)[1:])
        self.trained_parameters = sum(x.size for x in jax.tree.leaves(params))
        mesh = create_mesh(jax.devices()[:1])
        optimizer = create_optimizer(config.optimizer, 1_000_000, 10_000)
        parts = PartitionedModel(graph, trainable, params, frozen)
        self._state = create_state(parts, optimizer, config, mesh)
        self._frozen = jax.device_put(frozen, replicated(mesh))
        targets = Targets(inputs.boxes, inputs.labels, inputs.count)
        self._batch = jax.device_put(BatchInputs(inputs.images, inputs.sizes, targets), batch_sharding(mesh))
        step = create_train_step(parts, optimizer, config, mesh)
        self.program = compile_program(step, self._state, self._frozen, self._batch)
        self.first_loss: float | None = None

    def __call__(self, calls: int) -> None:
        for _ in range(calls):
            self._state, terms = self.program.run(self._state, self._frozen, self._batch)
        jax.block_until_ready((self._state, terms))
        if self.first_loss is None:
            self.first_loss = float(terms["loss"])
