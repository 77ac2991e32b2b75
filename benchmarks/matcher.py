"""Time of the matching of six decoder layers: scipy in a host callback, and the solver on the device.

Run::

    python benchmarks/matcher.py --json matcher.json

"callback" is what a training step waits for, transfers included, and "host" the part of it within the callback. The
rows "coco" have COCO's numbers of objects (mean 7.3, padded to 100), the others the same number in each image.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import environment  # noqa: F401  # before jax starts
import jax
import jax.numpy as jnp
import numpy as np
from inputs import MAX_OBJECTS, coco_counts, random_objects
from scipy.optimize import linear_sum_assignment
from timing import Candidate, Report, cell, in_turn, numbers, positive

from detr_jax import matching
from detr_jax.config import LossConfig
from detr_jax.matching import match, matching_cost
from detr_jax.structures import Predictions, Targets

LAYERS, QUERIES, CLASSES = 6, 100, 91


def main() -> int:
    """Runs the benchmark; 1 where a solver fails or the solvers' costs differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=numbers, default=[8, 64], metavar="N,...", help="images")
    parser.add_argument(
        "--boxes",
        type=box_counts,
        default=["coco", "7", "20", "100"],
        metavar="N,...",
        help="objects of each image, or coco",
    )
    parser.add_argument("--repeats", type=positive, default=15, help="rounds that medians are taken over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the figures here as one JSON object")
    args = parser.parse_args()

    columns = {"boxes": 6, "batch": 5, "columns": 7, "host ms": 8, "callback ms": 11, "device ms": 10}
    report = Report(columns, args.json, benchmark="matcher", layers=LAYERS, queries=QUERIES)
    rng, exit_code = np.random.default_rng(args.seed), 0
    host = HostTime()
    for boxes in args.boxes:
        for batch in args.batch:
            count = coco_counts(rng, batch) if boxes == "coco" else np.full(batch, int(boxes), np.int32)
            columns_given = MAX_OBJECTS if boxes == "coco" else int(boxes)
            cost = random_cost(rng, count, columns_given)
            device_count = jnp.asarray(count)
            solvers = {
                "callback": lambda cost=cost, count=device_count: with_callback(cost, count),
                "device": lambda cost=cost, count=device_count: on_device(cost, count),
            }
            totals = {name: total_cost(np.asarray(cost), np.asarray(solve())) for name, solve in solvers.items()}
            totals["scipy"] = lowest_cost(np.asarray(cost), count)
            if not np.allclose(list(totals.values()), totals["scipy"], rtol=1e-5):
                print(f"{boxes} boxes, batch {batch}: the total costs differ, {totals}.")
                exit_code = 1
            host.seconds.clear()
            timings = in_turn({name: repeated(solve) for name, solve in solvers.items()}, repeats=args.repeats)
            row = {"boxes": boxes, "batch": batch, "columns": columns_given, "objects": int(count.sum())}
            row |= {f"{name}_ms": 1e3 * seconds for name, seconds in timings.seconds.items()}
            row |= {"host_ms": 1e3 * statistics.median(host.seconds) if host.seconds else None}
            row |= {"failed": timings.failed}
            cells = {"boxes": boxes, "batch": str(batch), "columns": str(columns_given)}
            cells |= {f"{name} ms": cell(row.get(f"{name}_ms")) for name in ("host", *solvers)}
            report.add(row, cells)
            exit_code |= bool(timings.failed)
    return exit_code


def box_counts(text: str) -> list[str]:
    """Comma-separated numbers from 1 to 100, or "coco"."""
    chosen = text.split(",")
    for name in chosen:
        if name != "coco" and not (name.isdigit() and 1 <= int(name) <= MAX_OBJECTS):
            raise argparse.ArgumentTypeError(f"{name!r} must be coco or a number from 1 to {MAX_OBJECTS}")
    return chosen


def repeated(solve: Callable[[], jax.Array | np.ndarray]) -> Candidate:
    """A solver as a candidate."""

    def run(calls: int) -> None:
        for _ in range(calls):
            jax.block_until_ready(solve())

    return run


class HostTime:
    """Takes the place of the callback's function, and keeps the seconds of each of its calls."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.solve, matching.solve_with_scipy = matching.solve_with_scipy, self

    def __call__(self, *args: np.ndarray) -> np.ndarray:
        start = time.perf_counter()
        assigned = self.solve(*args)
        self.seconds.append(time.perf_counter() - start)
        return assigned


@jax.jit
def with_callback(cost: jax.Array, count: jax.Array) -> jax.Array:
    """The matching that training uses."""
    return match(cost, count, "scipy")


@jax.jit
def on_device(cost: jax.Array, count: jax.Array) -> jax.Array:
    """The same optimum without the host."""
    return match(cost, count, "device")


def random_cost(rng: np.random.Generator, count: np.ndarray, columns: int) -> jax.Array:
    """The cost [L, B, Q, T] of random predictions and random objects."""
    batch = len(count)
    logits = rng.normal(size=(LAYERS, batch, QUERIES, CLASSES + 1)).astype(np.float32)
    extent = rng.uniform(0.02, 0.6, (LAYERS, batch, QUERIES, 2))
    center = rng.uniform(extent / 2, 1 - extent / 2)
    predicted = np.concatenate([center, extent], -1).astype(np.float32)
    boxes, labels = random_objects(rng, batch, CLASSES)
    targets = Targets(boxes[:, :columns], labels[:, :columns], count)
    costs = LossConfig().costs
    return jax.jit(lambda *args: matching_cost(*args, costs))(Predictions(logits, predicted), targets)


def lowest_cost(cost: np.ndarray, count: np.ndarray) -> float:
    """Sum of the cost [L, B, Q, T] of the pairs that scipy picks, image by image."""
    problems = [layer[image, :, :objects] for layer in cost for image, objects in enumerate(count)]
    return float(sum(problem[linear_sum_assignment(problem)].sum(dtype=np.float64) for problem in problems))


def total_cost(cost: np.ndarray, assigned: np.ndarray) -> float:
    """Sum of the cost of all assigned pairs."""
    picked = np.take_along_axis(cost, np.maximum(assigned, 0)[:, :, None], axis=2)[:, :, 0]
    return float(np.where(assigned >= 0, picked, 0).sum(dtype=np.float64))


if __name__ == "__main__":
    sys.exit(main())
