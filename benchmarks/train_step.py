"""The training step of DETR R50 or Deformable DETR R50 against Hugging Face on torch.

Both sides have the same weights, data and trained parameters.

A step is everything between two batches: normalisation (here only: torch gets normalised images), forward pass with
dropout, matching of all six layers with scipy on the host, set loss, gradients, clipping at 0.1 and AdamW. Run::

    python benchmarks/train_step.py --json train_step.json
    python benchmarks/train_step.py --dtype bfloat16 --batch 16 --peer eager,compile,compile-nhwc
"""

import argparse
import functools
import sys

import environment  # before jax starts
import jax
import numpy as np
import remote
from inputs import random_inputs
from models import MODELS
from ours import TrainStep, create_model, set_precision
from timing import Report, against_peers, cell, common_flags, in_turn, matmul_rate, numbers, positive

from detr_jax.host_memory import keep_freed_memory

LOSS_TOLERANCE = 0.1
"""Largest relative difference of the first losses, which dropout and transformers' auxiliary outputs make unequal."""


def main() -> int:
    """Runs the benchmark; 1 where the two sides do not train the same or this project's side fails."""
    keep_freed_memory()  # as a training does
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_flags(parser)
    parser.add_argument("--batch", type=numbers, default=[1 if on_cpu else 8], metavar="N,...")
    parser.add_argument(
        "--calls", type=positive, default=1 if on_cpu else 10, help="steps a round, waited for together"
    )
    parser.add_argument("--matcher", choices=("scipy", "device"), default="scipy", help="of this project's side")
    args = parser.parse_args()
    if MODELS[args.model].trained_parameters is None:
        parser.error(f"--model {args.model} is for benchmarks/inference.py only")

    columns = {"dtype": 8, "batch": 5, "ours s": 8} | {f"{name} s": 8 for name in args.peer}
    columns |= {"ratio": 5, "best": 5, "images/s": 8, "TFLOP": 6, "TFLOP/s": 7, "of matmul": 9, "GiB": 6, "peer GiB": 8}
    report = Report(
        columns, args.json, benchmark="train_step", model=args.model, size=list(args.size), matcher=args.matcher
    )
    peer = remote.start(args.seed, args.model) if args.peer else None
    model = create_model(peer, args.model)

    rng, exit_code = np.random.default_rng(args.seed), 0
    for dtype in args.dtype:
        set_precision(dtype)
        rate = matmul_rate(dtype)
        print(f"{dtype}: a large matrix product runs at {rate / 1e12:.2f} TFLOP/s", flush=True)
        for batch in args.batch:
            inputs = random_inputs(rng, batch, args.size, 91, MODELS[args.model].stride)
            ours = TrainStep(model, inputs, dtype, args.matcher, args.model)
            print(f"  ours: compiled in {ours.program.seconds:.1f} s", flush=True)
            candidates = {"ours": ours}
            if peer:
                peer.steps(inputs, args.peer, dtype)
                candidates |= {kind: functools.partial(peer.run, kind) for kind in args.peer}
                wanted = MODELS[args.model].trained_parameters
                if ours.trained_parameters != wanted:
                    print(f"Here {ours.trained_parameters} parameters are trained, not {wanted}.")
                    return 1
            timings = in_turn(candidates, repeats=args.repeats, calls=args.calls)
            row = {"dtype": dtype, "batch": batch, "bucket": list(inputs.images.shape[1:3]), **against_peers(timings)}
            seconds, flops = row["ours_s"], ours.program.flops
            row |= {"images_per_s": batch / seconds if seconds else None, "objects": int(inputs.count.sum())}
            row |= {"peer_images_per_s": {name: batch / peer_s for name, peer_s in row["peers_s"].items()}}
            row |= {"trained_parameters": ours.trained_parameters, "compile_s": ours.program.seconds}
            row |= {"flops": flops, "flops_per_s": flops / seconds if seconds else None, "matmul_flops_per_s": rate}
            row |= {"matmul_share": flops / seconds / rate if seconds else None, "memory_bytes": ours.program.memory}
            row |= {"peak_memory_of_process_bytes": environment.peak_memory_of_process()}
            row |= {"peer_peak_memory_bytes": peer.peak_memory() if peer else None}
            row |= {"loss": ours.first_loss, "peer_loss": peer.first_loss() if peer else None}
            cells = {"dtype": dtype, "batch": str(batch), "ours s": cell(seconds, digits=4)}
            cells |= {f"{name} s": cell(row["peers_s"].get(name), digits=4) for name in args.peer}
            cells |= {"ratio": cell(row["ratio"]), "best": cell(row["ratio_best"])}
            cells |= {"images/s": cell(row["images_per_s"], digits=1), "TFLOP": cell(flops, 1e-12)}
            cells |= {"TFLOP/s": cell(row["flops_per_s"], 1e-12), "of matmul": cell(row["matmul_share"])}
            cells |= {"GiB": cell(ours.program.memory, 2**-30, 1)}
            cells |= {"peer GiB": cell(row["peer_peak_memory_bytes"], 2**-30, 1)}
            report.add(row, cells)
            if (dtype, batch) == (args.dtype[0], args.batch[0]):  # the headline
                report.note(ratio=row["ratio"], ratio_best=row["ratio_best"])
            exit_code |= seconds is None or not same_loss(row["loss"], row["peer_loss"])
            del candidates, ours
            if peer:
                peer.forget()
            jax.clear_caches()
    return exit_code


def same_loss(ours: float | None, peer: float | None) -> bool:
    """Whether the first losses are near enough to be the same loss; says so where they are not."""
    if ours is None or peer is None or abs(ours - peer) <= LOSS_TOLERANCE * abs(peer):
        return True
    print(f"The first losses are {ours:.2f} here and {peer:.2f} with torch: the two sides do not train the same.")
    return False


if __name__ == "__main__":
    sys.exit(main())
