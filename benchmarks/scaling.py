"""Weak scaling of the training step on simulated devices, by the cost of the compiled program.

Run::

    python benchmarks/scaling.py --json scaling.json

Each row is the program of the training step for so many devices, compiled in a process of its own and never run:
devices that are simulated share the cores, so a time would say nothing. All figures are those of one device. "exchange"
is what a device sends in a step when collectives go round a ring: for n devices 2 (n-1)/n of the bytes of an
all-reduce, (n-1)/n of those of an all-gather or a reduce-scatter.
"""

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import environment  # before jax starts
from inputs import MAX_OBJECTS
from timing import Report, cell, numbers, positive, size

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}

_COLLECTIVE = re.compile(rf"= (?P<result>\(.*?\)|\S+) (?P<kind>{'|'.join(KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def main() -> int:
    """Runs the benchmark; 1 where a program could not be compiled."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=numbers, default=[1, 2, 4, 8], metavar="N,...")
    parser.add_argument("--batch", type=positive, default=2, help="images of each device")
    parser.add_argument("--size", type=size, default=(800, 1066), metavar="HxW", help="image size in pixels")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", metavar="FILE", help="write the figures here as one JSON object")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # the figures of one row, in a process of its own
    args = parser.parse_args()
    if args.child:
        environment.end_with_parent()
        print(json.dumps(figures(json.loads(args.child))))
        return 0

    columns = {"devices": 7, "fsdp": 5, "TFLOP": 7, "GB moved": 8, "state MiB": 9, "step MiB": 9, "collectives": 40}
    columns |= {"exchange MiB": 12}
    bucket = [-(-side // 32) * 32 for side in args.size]
    report = Report(columns, args.json, benchmark="scaling", batch_per_device=args.batch, bucket=bucket)
    exit_code = 0
    for devices in args.devices:
        for fsdp in (False, True) if devices > 1 else (False,):
            case = {"devices": devices, "fsdp": fsdp, "batch": args.batch * devices, "bucket": bucket}
            row = in_own_process({**case, "dtype": args.dtype})
            exit_code |= bool(row.get("failed"))
            report.add(row, cells(row))
    return exit_code


def in_own_process(case: dict[str, Any]) -> dict[str, Any]:
    """The figures of one program; the number of simulated devices must be known before jax starts."""
    flags = f"--xla_force_host_platform_device_count={case['devices']} --xla_backend_optimization_level=0"
    result = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(case)],
        env={**environment.for_child(), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_TRACEBACK_FILTERING": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no message"])[-1]
        return {**case, "failed": {"compilation": last[:300]}}
    return {**case, **json.loads(result.stdout.splitlines()[-1])}


def figures(case: dict[str, Any]) -> dict[str, Any]:
    """Cost, memory and collectives of the program for one device of several."""
    import jax

    from detr_jax.config import Config
    from detr_jax.sharding import create_mesh
    from detr_jax.training.memory import compile_step

    config = Config()
    config.training.batch_size, config.training.fsdp = case["batch"], case["fsdp"]
    config.model.dtype = case["dtype"]
    compiled = compile_step(config, tuple(case["bucket"]), MAX_OBJECTS, create_mesh(jax.devices()[: case["devices"]]))
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    count, exchanged = collectives(compiled.as_text(), case["devices"])
    return {
        "flops": cost["flops"],
        "bytes_accessed": cost["bytes accessed"],
        "state_bytes": memory.argument_size_in_bytes,
        "step_bytes": memory.temp_size_in_bytes,
        "collectives": count,
        "exchanged_bytes": exchanged,
    }


def collectives(program: str, devices: int) -> tuple[dict[str, int], dict[str, float]]:
    """Number of the collectives by kind, and the bytes that a device sends for them, in the text of a program."""
    count: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for found in _COLLECTIVE.finditer(program):
        kind = found["kind"]
        result = sum(_array_bytes(dtype, shape) for dtype, shape in _ARRAY.findall(found["result"]))
        count[kind] += 1
        rounds = {"all-reduce": 2, "reduce-scatter": devices, "collective-permute": devices / max(devices - 1, 1)}
        sent[kind] += rounds.get(kind, 1) * (devices - 1) / devices * result
    return dict(count), dict(sent)


def _array_bytes(dtype: str, shape: str) -> int:
    elements = 1
    for length in filter(None, shape.split(",")):
        elements *= int(length)
    return elements * BYTES.get(dtype, 4)


def cells(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table."""
    told = {"devices": str(row["devices"]), "fsdp": "yes" if row["fsdp"] else "no"}
    if row.get("failed"):
        return told
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(row["collectives"].items()))
    return told | {
        "TFLOP": cell(row["flops"], 1e-12, 3),
        "GB moved": cell(row["bytes_accessed"], 1e-9),
        "state MiB": cell(row["state_bytes"], 2**-20, 1),
        "step MiB": cell(row["step_bytes"], 2**-20, 0),
        "collectives": kinds or "none",
        "exchange MiB": cell(sum(row["exchanged_bytes"].values()), 2**-20, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
