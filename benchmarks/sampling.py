"""Forms of the sampling in multi-scale deformable attention, forward and with the backward pass.

The queries are the cells of an image, as in the encoder, and look at places near themselves. Run::

    python benchmarks/sampling.py --json sampling.json
    python benchmarks/sampling.py --size 400x533 --batch 2 --peer none

"chosen" is `detr_jax.models.sampling.sample_levels`. The other forms are here, because they lost:

* together: all heads at once, without a loop over heads.
* derived: the gradient that JAX derives, instead of one that adds row by row.
* gathered: one gather of all rows, then one product with the factors.
* packed: each cell holds its 2x2 neighbourhood, so that a point is one row of four times the width.
* products: the levels below 1,000 cells as products with hat functions, without a gather; the others as in "chosen".
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import environment  # before jax starts
import jax
import jax.numpy as jnp
import numpy as np
from timing import Candidate, Report, cell, in_turn, names, positive, size

from detr_jax.models import sampling
from detr_jax.models.sampling import Shapes, sample_levels

HEADS, CHANNELS, POINTS, STRIDES = 8, 32, 4, (8, 16, 32, 64)
FEW_CELLS = 1000
Form = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def main() -> int:
    """Runs the benchmark; 1 if two forms disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=(800, 1066), metavar="HxW", help="image size in pixels")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--peer", type=names("torch", "none"), default=["torch"], metavar="NAME", help="torch or none")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the figures here as one JSON object")
    args = parser.parse_args()

    shapes = tuple((-(-args.size[0] // stride), -(-args.size[1] // stride)) for stride in STRIDES)
    inputs = random_inputs(np.random.default_rng(args.seed), shapes, args.batch)
    forwards: dict[str, Candidate] = {}
    steps: dict[str, Candidate] = {}
    expected = np.asarray(sample_levels(*inputs[:1], shapes, *inputs[1:]))
    exit_code = 0
    for name, form in forms(shapes).items():
        difference = np.abs(np.asarray(jax.jit(form)(*inputs)) - expected).max()
        if difference > 1e-4:
            print(f"{name} differs from the chosen form by {difference:.1e}")
            exit_code = 1
        forwards[name] = runner(jax.jit(form), inputs)
        steps[name] = runner(jax.jit(jax.grad(lambda *x, form=form: form(*x).sum(), argnums=(0, 1, 2))), inputs)
    if args.peer:
        forwards["torch"], steps["torch"] = torch_candidates(shapes, inputs)

    columns = {"form": 10, "forward ms": 10, "both ms": 8, "of torch": 8, "both of torch": 13}
    cells = sum(height * width for height, width in shapes)
    report = Report(columns, args.json, benchmark="sampling", size=list(args.size), batch=args.batch, cells=cells)
    forward = in_turn(forwards, repeats=args.repeats).seconds
    both = in_turn(steps, repeats=args.repeats).seconds
    for name in forwards:
        row = {"form": name, "forward_s": forward.get(name), "both_s": both.get(name)}
        text = {"form": name, "forward ms": cell(forward.get(name), 1e3), "both ms": cell(both.get(name), 1e3)}
        if args.peer and name in forward and name in both:
            row |= {"ratio": forward["torch"] / forward[name], "both_ratio": both["torch"] / both[name]}
            text |= {"of torch": cell(row["ratio"]), "both of torch": cell(row["both_ratio"])}
        report.add(row, text)
    return exit_code


def random_inputs(rng: np.random.Generator, shapes: Shapes, batch: int) -> tuple[jax.Array, ...]:
    """Values [B, S, A, E], locations [B, S, A, M, P, 2] two cells around each cell, and weights [B, S, A, M, P]."""
    centers = np.concatenate(
        [
            np.stack(np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height), -1).reshape(
                -1, 2
            )
            for height, width in shapes
        ]
    )
    cells, levels = len(centers), len(shapes)
    sizes = np.array([(width, height) for height, width in shapes])[:, None]
    offsets = 2 * rng.normal(size=(batch, cells, HEADS, levels, POINTS, 2)) / sizes
    weights = rng.dirichlet(np.ones(levels * POINTS), (batch, cells, HEADS)).reshape(offsets.shape[:-1])
    values = rng.normal(size=(batch, cells, HEADS, CHANNELS))
    return tuple(jnp.asarray(x, jnp.float32) for x in (values, centers[:, None, None, None] + offsets, weights))


def runner(function: Callable[..., Any], inputs: tuple[jax.Array, ...]) -> Candidate:
    """A candidate that waits for the last call."""

    def run(calls: int) -> None:
        for _ in range(calls):
            result = function(*inputs)
        jax.block_until_ready(result)

    return run


def forms(shapes: Shapes) -> dict[str, Form]:
    """Every form by name. Each maps values, locations and weights to [B, S, A, E]."""
    starts = np.cumsum([0, *(height * width for height, width in shapes)]).tolist()

    def cells(locations: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sampling._cells_and_factors(shapes, locations, weights)

    def derived(values: jax.Array, locations: jax.Array, weights: jax.Array) -> jax.Array:
        rows, factors = cells(locations, weights)
        total = jnp.zeros((rows.shape[1], CHANNELS))
        for row, factor in zip(rows, factors, strict=True):
            total = total + factor[:, None] * values[row]
        return total

    def gathered(values: jax.Array, locations: jax.Array, weights: jax.Array) -> jax.Array:
        rows, factors = cells(locations, weights)
        return jnp.einsum("kn,kne->ne", factors, values[rows])

    def packed(values: jax.Array, locations: jax.Array, weights: jax.Array) -> jax.Array:
        total = jnp.zeros((locations.shape[0], CHANNELS))
        for level, (height, width) in enumerate(shapes):
            grid = values[starts[level] : starts[level + 1]].reshape(height, width, CHANNELS)
            grid = jnp.pad(grid, ((1, 1), (1, 1), (0, 0)))
            corners = (grid[:-1, :-1], grid[:-1, 1:], grid[1:, :-1], grid[1:, 1:])
            table = jnp.concatenate(corners, axis=-1).reshape(-1, 4 * CHANNELS)
            x, y = locations[:, level, :, 0] * width - 0.5, locations[:, level, :, 1] * height - 0.5
            left, top = jnp.floor(x), jnp.floor(y)
            inside = (left >= -1) & (left < width) & (top >= -1) & (top < height)
            row = jnp.where(inside, (top + 1) * (width + 1) + left + 1, 0).astype(jnp.int32)
            share = jnp.where(inside, weights[:, level], 0)
            along_x, along_y = x - left, y - top
            parts = [(1 - along_y) * (1 - along_x), (1 - along_y) * along_x, along_y * (1 - along_x), along_y * along_x]
            factor = jnp.stack(parts, -1) * share[..., None]
            read = table[row].reshape(*row.shape, 4, CHANNELS)
            total = total + jnp.einsum("npc,npce->ne", factor, read)
        return total

    def products(values: jax.Array, locations: jax.Array, weights: jax.Array) -> jax.Array:
        few = [level for level, (height, width) in enumerate(shapes) if height * width < FEW_CELLS]
        first = min(few, default=len(shapes))
        rows, factors = sampling._cells_and_factors(shapes[:first], locations[:, :first], weights[:, :first])
        total = sampling.weighted_rows(values[: starts[first]], rows, factors)
        for level in few:
            height, width = shapes[level]
            hats = [
                jnp.maximum(1 - jnp.abs(locations[:, level, :, axis, None] * n - 0.5 - jnp.arange(n)), 0)
                for axis, n in ((0, width), (1, height))
            ]
            shares = jnp.einsum("npw,nph,np->nhw", *hats, weights[:, level]).reshape(-1, height * width)
            total = total + shares @ values[starts[level] : starts[level + 1]]
        return total

    def head_by_head(form: Form) -> Form:
        def run(*inputs: jax.Array) -> jax.Array:
            heads = tuple(jnp.moveaxis(x, 2, 0) for x in inputs)
            return jnp.moveaxis(jax.lax.map(lambda head: jax.vmap(form)(*head), heads), 0, 2)

        return run

    def together(*inputs: jax.Array) -> jax.Array:
        def one(values: jax.Array, locations: jax.Array, weights: jax.Array) -> jax.Array:
            return sampling.weighted_rows(values, *cells(locations, weights))

        return jax.vmap(jax.vmap(one, in_axes=(1, 1, 1), out_axes=1))(*inputs)

    return {
        "chosen": lambda values, locations, weights: sample_levels(values, shapes, locations, weights),
        "together": together,
        **{form.__name__: head_by_head(form) for form in (derived, gathered, packed, products)},
    }


def torch_candidates(shapes: Shapes, inputs: tuple[jax.Array, ...]) -> tuple[Candidate, Candidate]:
    """The sampling of transformers, which calls grid_sample for each level: forward, and with the backward pass."""
    import torch
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

    torch.set_num_threads(environment.THREADS)
    module = MultiScaleDeformableAttention()
    tensors = [torch.tensor(np.asarray(x), requires_grad=True) for x in inputs]
    levels = torch.tensor(shapes)
    starts = torch.cat((levels.new_zeros((1,)), levels.prod(1).cumsum(0)[:-1]))

    def sample() -> torch.Tensor:
        return module(tensors[0], levels, list(shapes), starts, tensors[1], tensors[2], 64)

    def forward(calls: int) -> None:
        with torch.inference_mode():
            for _ in range(calls):
                sample()

    def both(calls: int) -> None:
        for _ in range(calls):
            sample().sum().backward()

    return forward, both


if __name__ == "__main__":
    sys.exit(main())
