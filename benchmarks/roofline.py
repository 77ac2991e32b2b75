"""Where the time of a training step must go: operations, bytes and the least time of each part of DETR R50.

Run::

    python benchmarks/roofline.py --batch 16 --json roofline.json

Nothing of the model is run: operations are counted by XLA's cost analysis of each part's program before optimisation
(on the CPU; for GPUs it tells none), bytes by the shapes of what a part must read and write.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"

import environment  # noqa: F401  # before jax starts
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from inputs import MAX_OBJECTS
from ours import model_fields
from timing import Report, cell, matmul_rate, names, positive, size

from detr_jax.config import Config
from detr_jax.losses import set_loss
from detr_jax.matching import Targets
from detr_jax.models import DETR, Predictions, detr_resnet50
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.state import abstract_model, abstract_state

PEAKS = {
    "H100": ({"bfloat16": 989e12, "tf32": 495e12, "float32": 67e12}, 3.35e12),
    "H200": ({"bfloat16": 989e12, "tf32": 495e12, "float32": 67e12}, 4.8e12),
}
"""NVIDIA's data sheets of the SXM form: dense FLOP/s by precision, and bytes/s of memory."""


class Part(NamedTuple):
    """A part of the step: ``call(module, *inputs, *fixed)``, floating arrays out."""

    name: str
    module: nnx.Module
    call: Callable
    inputs: tuple = ()
    """Shapes of what gradients are wanted of."""
    fixed: tuple = ()
    """Shapes of all else."""
    trained: bool = True


class Cost(NamedTuple):
    """Of a forward or a backward pass."""

    flops: float
    unfused: float
    """Bytes, if every operation read and wrote memory."""
    bytes: float
    """Bytes of what is given, kept for the backward pass, and returned, each moved once."""


def main() -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=(800, 1066), metavar="HxW", help="image size in pixels")
    parser.add_argument("--dtype", type=names("float32", "tf32", "bfloat16"), default=["bfloat16"], metavar="NAME,...")
    parser.add_argument("--batch", type=positive, default=16, help="images of a step")
    parser.add_argument("--json", metavar="FILE", help="write the figures here as one JSON object")
    args = parser.parse_args()

    machines = {name: (rates, bandwidth) for name, (rates, bandwidth) in PEAKS.items()}
    own = {dtype: matmul_rate(dtype) for dtype in args.dtype}
    machines["this CPU"] = (own, copy_bandwidth())
    columns = {"dtype": 8, "part": 16, "pass": 8, "GFLOP": 8, "GB": 6, "unfused GB": 10}
    report = Report(columns | {f"{name} ms": 8 for name in machines}, args.json, benchmark="roofline", batch=args.batch)
    report.note(machines={name: {"flops": rates, "bytes": rate} for name, (rates, rate) in machines.items()})
    for dtype in args.dtype:
        total = dict.fromkeys(machines, 0.0)
        sums = np.zeros(3)
        for name, direction, cost in step_costs(dtype, args.batch, args.size):
            floors = {m: max(cost.flops / rates[dtype], cost.bytes / rate) for m, (rates, rate) in machines.items()}
            total = {m: total[m] + floors[m] for m in machines}
            sums += cost
            add_row(report, dtype, name, direction, cost, floors)
        add_row(report, dtype, "step", "both", Cost(*sums.tolist()), total)
    return 0


def add_row(report: Report, dtype: str, part: str, direction: str, cost: Cost, floors: dict[str, float]) -> None:
    """A row of the table and of the JSON file; floors in seconds."""
    row = {"dtype": dtype, "part": part, "pass": direction, **cost._asdict(), "floors_s": floors}
    cells = {"dtype": dtype, "part": part, "pass": direction, "GFLOP": cell(cost.flops, 1e-9, 1)}
    cells |= {"GB": cell(cost.bytes, 1e-9), "unfused GB": cell(cost.unfused, 1e-9)}
    report.add(row, cells | {f"{name} ms": cell(seconds, 1e3) for name, seconds in floors.items()})


def step_costs(dtype: str, batch: int, image: tuple[int, int]):
    """Yields (part, "forward" or "backward", `Cost`) of each part of the step."""
    config = Config(model=detr_resnet50(**model_fields(dtype)))
    for part in parts(config, batch, tuple(-(-side // 32) * 32 for side in image)):
        forward, backward = costs(part)
        yield part.name, "forward", forward
        if backward is not None:
            yield part.name, "backward", backward
    model, optimizer = abstract_model(config), create_optimizer(config.optimizer, 1, 1)
    state = abstract_state(model, optimizer, config)
    update = jax.jit(lambda gradient, state, params: optimizer.update(gradient, state, params))
    flops, unfused = analysed(update, state.params, state.opt_state, state.params)
    moments = nbytes(state.opt_state)
    yield "optimiser", "update", Cost(flops, unfused, 3 * nbytes(state.params) + 2 * moments)


def parts(config: Config, batch: int, bucket: tuple[int, ...]) -> list[Part]:
    """The parts of the model and its loss, in order; shapes alone."""
    model = nnx.eval_shape(lambda: DETR(config.model, rngs=nnx.Rngs(0)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    sizes = shape(batch, 2, dtype=jnp.int32)

    def stem(stem: Any, images: jax.Array, sizes: jax.Array) -> jax.Array:
        return stem(model.normalize(images, sizes).astype(config.model.dtype), sizes)[0]

    def stage(blocks: Any, x: jax.Array, sizes: jax.Array) -> jax.Array:
        for block in blocks:
            x, sizes = block(x, sizes)
        return x

    def encoder(modules: Any, x: jax.Array, mask: jax.Array, position: jax.Array, key: jax.Array) -> jax.Array:
        projection, encoder = modules
        return encoder(projection(x).astype(jnp.float32), mask, position, rngs=nnx.Rngs(dropout=key))

    def decoder(decoder: Any, queries: jax.Array, memory: jax.Array, mask: jax.Array, position: jax.Array, key: Any):
        return decoder(queries, memory, mask, position, rngs=nnx.Rngs(dropout=key))

    def loss(heads: Any, decoded: jax.Array, targets: Targets) -> jax.Array:
        return set_loss(Predictions(heads[0](decoded), heads[1](decoded)), targets, config.loss)[0]

    x = shape(batch, *bucket, 3, dtype=jnp.uint8)
    found = [Part("stem", model.backbone.stem, stem, fixed=(x, sizes), trained=False)]
    first_trained = 1  # stages before it are frozen, as in the paper
    for number, blocks in enumerate(model.backbone.stages):
        out = outputs(found[-1])
        given = (out,) if number > first_trained else ()
        fixed = (sizes,) if given else (out, sizes)
        found.append(Part(f"stage {number + 1}", blocks, stage, given, fixed, trained=number >= first_trained))
    out = outputs(found[-1])
    tokens, width, values = out.shape[1] * out.shape[2], config.model.hidden_dim, out.dtype
    flat = shape(batch, tokens, out.shape[3], dtype=values)
    mask, position = shape(batch, tokens, dtype=jnp.bool_), shape(batch, tokens, width)
    modules = nnx.List([model.input_projection, model.encoder])
    found.append(Part("encoder", modules, encoder, (flat,), (mask, position, key)))
    queries = shape(config.model.num_queries, width)
    found.append(Part("decoder", model.decoder, decoder, (queries, outputs(found[-1])), (mask, position, key)))
    integers = shape(batch, MAX_OBJECTS, dtype=jnp.int32)
    targets = Targets(shape(batch, MAX_OBJECTS, 4), integers, shape(batch, dtype=jnp.int32))  # type: ignore[arg-type]
    heads = nnx.List([model.class_head, model.box_head])
    return [*found, Part("heads and loss", heads, loss, (outputs(found[-1]),), (targets,))]


def shape(*sides: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array without values."""
    return jax.ShapeDtypeStruct(sides, dtype)


def outputs(part: Part) -> Any:
    """The shape of what a part returns."""
    graph, values = nnx.split(part.module)

    def run(values: Any, *inputs: Any) -> Any:
        return part.call(nnx.merge(graph, values), *inputs)

    return jax.eval_shape(run, nnx.as_pure(values), *part.inputs, *part.fixed)


def costs(part: Part) -> tuple[Cost, Cost | None]:
    """Of a part's forward pass, and of its backward pass if it has one."""
    graph, params, rest = nnx.split(part.module, nnx.Param, ...)
    params, rest = nnx.as_pure(params), nnx.as_pure(rest)

    def forward(params: Any, inputs: tuple, rest: Any, fixed: tuple) -> Any:
        return part.call(nnx.merge(graph, params, rest), *inputs, *fixed)

    args = (params, part.inputs, rest, part.fixed)
    out = jax.eval_shape(forward, *args)
    flops, unfused = analysed(jax.jit(forward), *args)
    moved = nbytes(args) + nbytes(out)
    if not part.trained:
        return Cost(flops, unfused, moved), None

    def backward(params: Any, inputs: tuple, rest: Any, fixed: tuple) -> Any:
        """The backward pass, a tree of what it keeps."""
        return jax.vjp(lambda params, inputs: forward(params, inputs, rest, fixed), params, inputs)[1]

    def both(cotangent: Any, *args: Any) -> Any:
        value, pull = jax.vjp(lambda params, inputs: forward(params, inputs, *args[2:]), *args[:2])
        return value, pull(cotangent)

    kept = nbytes(jax.eval_shape(backward, *args))
    all_flops, all_unfused = analysed(jax.jit(both), out, *args)
    new = max(0, kept - nbytes(args))  # what is kept beside what was given
    returned = nbytes((params, part.inputs))
    first = Cost(flops, unfused, moved + new)
    return first, Cost(all_flops - flops, all_unfused - unfused, kept + nbytes(out) + returned)


def analysed(function: Any, *args: Any) -> tuple[float, float]:
    """Operations and bytes of a program before optimisation, by XLA's cost analysis."""
    found: Any = function.lower(*args).cost_analysis()
    return float(found["flops"]), float(found["bytes accessed"])


def nbytes(tree: Any) -> int:
    """Bytes of all arrays of a tree of shapes."""
    return sum(x.size * getattr(x.dtype, "itemsize", 4) for x in jax.tree.leaves(tree))


def copy_bandwidth(repeats: int = 5) -> float:
    """Bytes per second that this machine reads and writes in copying an array far larger than its caches."""
    source = np.ones(2**26, np.float32)
    target = np.empty_like(source)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / statistics.median(times[1:])


if __name__ == "__main__":
    sys.exit(main())
