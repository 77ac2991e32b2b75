"""The memory that a training step needs, known from the compiled step before it runs."""

import math
import re
from collections.abc import Callable
from typing import NamedTuple, cast

import jax
from flax import nnx
from jax.sharding import Mesh

from detr_jax.config import Config
from detr_jax.memory import size_text
from detr_jax.sharding import Tree
from detr_jax.structures import Outputs
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.state import abstract_batch, abstract_model, abstract_state
from detr_jax.training.step import create_train_step

_UNITS = {"": 1, "B": 1, **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)}} | {
    f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)
}

TO_NEED_LESS = (
    "Lower training.batch_size (detr-jax buckets --largest-batch finds what fits), raise training.accumulate, or set "
    "model.remat=all."
)
"""What to do if a step does not fit into memory."""


class StepMemory(NamedTuple):
    """Bytes on each device, as the compiler plans them."""

    state: int
    """Parameters, optimizer state, EMA and the batch: the arguments of the step."""
    temporary: int
    """Activations, gradients and everything else that exists only within the step."""

    @property
    def total(self) -> int:
        """Bytes that a device needs for this step, in addition to the memory of the runtime."""
        return self.state + self.temporary

    def __str__(self) -> str:
        shares = f"{size_text(self.state)} of state and batch, {size_text(self.temporary)} within the step"
        return f"{size_text(self.total)} ({shares})"


def compiled_memory(compiled: jax.stages.Compiled) -> StepMemory | None:
    """The memory of a compiled step. None if its compiler does not report it."""
    planned = compiled.memory_analysis()
    if planned is None:
        return None
    given = planned.argument_size_in_bytes
    return StepMemory(given, planned.temp_size_in_bytes + planned.output_size_in_bytes - planned.alias_size_in_bytes)


def step_memory(config: Config, bucket: tuple[int, int], max_objects: int, mesh: Mesh) -> StepMemory:
    """The memory of the training step of a bucket. The arguments are the arguments of `compile_step`.

    Raises:
      NotImplementedError: the compiler for these devices does not report it.
    """
    found = compiled_memory(compile_step(config, bucket, max_objects, mesh))
    if found is None:
        raise NotImplementedError("The compiler for these devices does not report the memory that a step needs.")
    return found


def compile_step(config: Config, bucket: tuple[int, int], max_objects: int, mesh: Mesh) -> jax.stages.Compiled:
    """Compiles the training step of a bucket for the mesh's devices from abstract arrays. It allocates no arrays.

    Args:
      config: model, optimizer and batch size.
      bucket: (height, width) in pixels.
      max_objects: the largest number of objects in an image of the data.
      mesh: the devices over which the batch is sharded.
    """
    model, optimizer = abstract_model(config), create_optimizer(config.optimizer, 1, 1)
    step = cast(jax.stages.Wrapped, create_train_step(model, optimizer, config, mesh))
    batch = abstract_batch(config, bucket, max_objects)
    return step.lower(abstract_state(model, optimizer, config), model.frozen, batch).compile()


def kept_memory(config: Config, bucket: tuple[int, int]) -> int:
    """Bytes that the forward pass of a batch keeps for the backward pass, on all devices together, params included.

    ``model.remat`` reduces this memory. It follows from shapes only. A compiler may keep less, and its temporaries come
    in addition.

    Args:
      config: model, optimizer (for frozen parameters nothing is kept) and batch size.
      bucket: (height, width) in pixels.
    """
    model, batch = abstract_model(config), abstract_batch(config, bucket, 1)

    def backward(params: Tree, frozen: Tree, images: jax.Array, sizes: jax.Array) -> Callable:
        def forward(params: Tree) -> Outputs:
            module = model.merge(params, frozen)
            return module(module.normalize(images, sizes), sizes, rngs=nnx.Rngs(dropout=0))

        return jax.vjp(forward, params)[1]  # a pytree whose leaves are the arrays that it keeps

    kept = jax.eval_shape(backward, model.params, model.frozen, batch.images, batch.valid_sizes)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))


def device_memory(mesh: Mesh) -> int | None:
    """Bytes that JAX can allocate on each of this process's devices of a mesh. None if it is not known (CPUs)."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in mesh.local_devices]
    known = [limit for limit in limits if limit]
    return min(known) if known and len(known) == len(limits) else None


def memory_sentence(memory: StepMemory, bucket: tuple[int, int], limit: int | None) -> str:
    """A sentence with the memory of the step on the largest bucket, and with advice if the devices have less.

    Args:
      memory: the memory of the step.
      bucket: (height, width) in pixels.
      limit: bytes that each device has, or None if that is not known.
    """
    available = "" if limit is None else f" of the available {size_text(limit)}"
    sentence = f"a step on the largest bucket, {bucket[0]} x {bucket[1]}, needs {memory}{available} on each device"
    if limit is None or memory.total <= limit:
        return sentence
    return f"{sentence}: that is too much. {TO_NEED_LESS}"


def parse_memory(text: str) -> int:
    """Bytes of a size such as "80GiB", "24 GB" or "1000000".

    Raises:
      ValueError: the text is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    units = {unit.lower(): factor for unit, factor in _UNITS.items()}
    if not match or match[2].lower() not in units or not float(match[1]):
        raise ValueError(f"{text!r} is not a size of memory: give a number and a unit, such as 80GiB or 24GB.")
    return int(float(match[1]) * units[match[2].lower()])


def largest_that_fits(needed: Callable[[int], float], limit: float, most: int) -> int:
    """The largest number of 1 to ``most`` that needs no more than ``limit``. 0 if 1 needs more.

    Args:
      needed: returns what a number needs. It rises with the number and may be infinite. It is called as few times as
        possible, because each call compiles a step. Memory is nearly linear in the size of a batch, so each guess is
        the number at which the line through two calls meets the limit.
      limit: what is available.
      most: the largest number to try.
    """
    found: dict[int, float] = {}
    fits, exceeds = 0, most + 1
    guess = 1
    while exceeds - fits > 1:
        before = exceeds - fits
        found[guess] = needed(guess)
        if found[guess] <= limit:
            fits = guess
        else:
            exceeds = guess
        line = _line_at_limit(found, limit, fits)
        if exceeds in found and exceeds - fits > before / 2 and before <= most:
            line = (fits + exceeds) // 2  # the line did not help
        guess = min(max(line, fits + 1), exceeds - 1)
    return fits


def _line_at_limit(found: dict[int, float], limit: float, fits: int) -> int:
    """The next guess of `largest_that_fits`, on the line through the two finite points nearest to the limit."""
    points = sorted((n for n in found if math.isfinite(found[n])), key=lambda n: abs(found[n] - limit))[:2]
    if len(points) < 2:
        over = min((n for n in found if n > fits), default=None)
        return 2 * max(fits, 1) if over is None else (fits + over) // 2
    low, high = sorted(points)
    slope = (found[high] - found[low]) / (high - low)
    return math.floor(low + (limit - found[low]) / slope) if slope > 0 else 2 * high
