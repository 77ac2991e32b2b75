"""Inference of DETR R50 or Deformable DETR R50 against Hugging Face's on torch: the same weights, images and precision.

Run from anywhere::

    python benchmarks/inference.py --json inference.json
    python benchmarks/inference.py --dtype bfloat16 --batch 1,8 --peer eager,compile,graphs

Each row is one batch size and precision. The outputs are compared before anything is timed.
"""

import argparse
import functools
import sys

import environment  # noqa: F401  # before jax starts
import jax
import numpy as np
import remote
from inputs import random_inputs
from models import MODELS
from ours import Forward, create_model, set_precision
from timing import Report, against_peers, cell, common_flags, in_turn, numbers, positive

from detr_jax.host_memory import keep_freed_memory

TOLERANCE = 1e-4
"""Largest difference of logits and boxes in float32."""


def main() -> int:
    """Runs the benchmark; 1 where outputs disagree or this project's side fails."""
    keep_freed_memory()  # as `Detector` does
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_flags(parser)
    parser.add_argument("--batch", type=numbers, default=[1, 8], metavar="N,...")
    parser.add_argument("--calls", type=positive, default=1, help="calls a round; 1 measures latency")
    args = parser.parse_args()

    columns = {"dtype": 8, "batch": 5, "ours ms": 9}
    columns |= {f"{name} ms": 9 for name in args.peer} | {"ratio": 5, "best": 5, "images/s": 8, "TFLOP/s": 7}
    report = Report(columns, args.json, benchmark="inference", model=args.model, size=list(args.size))
    peer = remote.start(args.seed, args.model) if args.peer else None
    model = create_model(peer, args.model)

    rng, exit_code = np.random.default_rng(args.seed), 0
    for dtype in args.dtype:
        set_precision(dtype)
        for batch in args.batch:
            inputs = random_inputs(rng, batch, args.size, 91, MODELS[args.model].stride)
            forward = Forward(model, inputs, dtype, args.model)
            candidates = {"ours": forward}
            difference = None
            if peer:
                expected, theirs = peer.forwards(inputs, args.peer, dtype)
                difference = distance(forward.outputs(), expected)
                allowed = TOLERANCE if dtype == "float32" else max(TOLERANCE, 2 * distance(theirs, expected))
                if not difference <= allowed:
                    print(f"{dtype}, batch {batch}: outputs differ by {difference:.1e}, and {allowed:.1e} is allowed.")
                    exit_code = 1
                    continue
                candidates |= {kind: functools.partial(peer.run, kind) for kind in args.peer}
            timings = in_turn(candidates, repeats=args.repeats, calls=args.calls)
            row = {"dtype": dtype, "batch": batch, "bucket": list(inputs.images.shape[1:3]), **against_peers(timings)}
            ours = row["ours_s"]
            row |= {"difference": difference, "compile_s": forward.program.seconds, "flops": forward.program.flops}
            row |= {"memory_bytes": forward.program.memory, "images_per_s": batch / ours if ours else None}
            cells = {"dtype": dtype, "batch": str(batch), "ours ms": cell(ours, 1e3)}
            cells |= {f"{name} ms": cell(row["peers_s"].get(name), 1e3) for name in args.peer}
            cells |= {"ratio": cell(row["ratio"]), "best": cell(row["ratio_best"])}
            cells |= {"images/s": cell(row["images_per_s"], digits=1)}
            cells |= {"TFLOP/s": cell(row["flops"] / ours / 1e12 if ours else None)}
            report.add(row, cells)
            if (dtype, batch) == (args.dtype[0], args.batch[0]):  # the headline
                report.note(ratio=row["ratio"], ratio_best=row["ratio_best"])
            exit_code |= ours is None
            del candidates, forward
            if peer:
                peer.forget()
            jax.clear_caches()
    return exit_code


def distance(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> float:
    """The largest difference of logits or boxes."""
    return max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))


if __name__ == "__main__":
    sys.exit(main())
