"""How the time of a forward pass grows with the size of the image and with the number of queries.

Each row is one size and one number of queries. The weights are random, and the images are not compared. Run::

    python benchmarks/growth.py --model deformable --json growth.json
"""

import argparse
import sys

import environment  # noqa: F401  # before jax starts
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from inputs import random_inputs
from models import MODELS
from ours import compile_program, set_precision
from timing import Report, cell, in_turn, numbers, positive, size

from detr_jax.host_memory import keep_freed_memory


def main() -> int:
    """Runs the benchmark."""
    keep_freed_memory()  # as `Detector` does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(MODELS), default="deformable")
    parser.add_argument(
        "--sizes",
        type=lambda text: [size(part) for part in text.split(",")],
        default=[(320, 426), (480, 640), (640, 853), (800, 1066)],
        metavar="HxW,...",
    )
    parser.add_argument("--queries", type=numbers, default=[100, 300, 900], metavar="N,...")
    parser.add_argument("--repeats", type=positive, default=5, help="calls that the median is taken over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the figures here as one JSON object")
    args = parser.parse_args()

    set_precision("float32")
    columns = {"size": 9, "queries": 7, "ms": 8, "TFLOP": 6, "GiB": 5}
    report = Report(columns, args.json, benchmark="growth", model=args.model)
    usual = MODELS[args.model].config().num_queries
    rows = [(each, usual) for each in args.sizes]
    rows += [(args.sizes[-1], number) for number in args.queries if number != usual]
    for image_size, queries in rows:
        model = MODELS[args.model].config(num_queries=queries).build(rngs=nnx.Rngs(args.seed))
        inputs = random_inputs(np.random.default_rng(args.seed), 1, image_size, 91, MODELS[args.model].stride)
        sizes = jnp.asarray(inputs.sizes)
        graph, values = nnx.split(model)
        images = model.normalize(jnp.asarray(inputs.images), sizes)
        program = compile_program(
            jax.jit(lambda v, i, s, g=graph: nnx.merge(g, v)(i, s).boxes[-1]), values, images, sizes
        )

        def run(calls: int, program=program, inputs=(values, images, sizes)) -> None:
            for _ in range(calls):
                result = program.run(*inputs)
            jax.block_until_ready(result)

        seconds = in_turn({"ours": run}, repeats=args.repeats).seconds["ours"]
        report.add(
            {"size": list(image_size), "queries": queries, "s": seconds, "memory_bytes": program.memory},
            {
                "size": "x".join(map(str, image_size)),
                "queries": str(queries),
                "ms": cell(seconds, 1e3, digits=0),
                "TFLOP": cell(program.flops / 1e12, digits=2),
                "GiB": cell(program.memory / 2**30, digits=2),
            },
        )
        jax.clear_caches()
    return 0


if __name__ == "__main__":
    sys.exit(main())
