"""Trains for many steps, with validations and saves, and measures what must not grow.

Command::

    python tests/long_run.py [--steps 20000] [--workers 0] [--matcher device|scipy]

A tiny model is trained, validated every 120 steps, and saved every 100. At each of 20 points the process's resident
memory, open files and threads, the compiled programs, and the rate since the point before are printed. The first fifth
of the run is the warm-up. After it, files, threads and programs must not grow at all, memory by less than 5%, and the
rate of the last fifth must be above 0.8 times that of the second.

The last line is one JSON object with the figures. The exit code is 1 if anything grows.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_POINTS = 20


def resources() -> dict[str, int]:
    """Resident memory in MiB, open files, and threads of this process."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {
        "memory": int(status["VmRSS"].split()[0]) // 1024,
        "files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
    }


def run(steps: int, workers: int, matcher: str, workdir: Path) -> list[dict[str, Any]]:
    """Trains, and returns the measurements at each point."""
    import detr_jax
    from detr_jax.config import Matcher
    from detr_jax.testing import tiny_config

    config = tiny_config()
    config.training.steps, config.training.checkpoint_every, config.training.log_every = steps, 100, 20
    config.evaluation.every_epochs, config.evaluation.pictures, config.evaluation.snapshots = 20, 2, 3
    config.data.num_workers, config.loss.matcher = workers, Matcher(matcher)
    points: list[dict[str, Any]] = []
    every = steps // _POINTS
    last = [0, time.monotonic()]

    def on_log(step: int, numbers: dict[str, float]) -> None:
        if "train/programs" not in numbers or step < last[0] + every:
            return
        now = time.monotonic()
        rate = (step - last[0]) / (now - last[1])
        points.append(
            {"step": step, **resources(), "programs": int(numbers["train/programs"]), "steps_per_s": round(rate, 1)}
        )
        last[:] = step, now
        print(json.dumps(points[-1]), file=sys.stderr, flush=True)

    detr_jax.train(config, workdir, on_log=on_log)
    return points


def faults(points: list[dict[str, Any]]) -> list[str]:
    """What grew after the warm-up, as sentences."""
    fifth = max(1, len(points) // 5)
    warm = points[fifth:]
    found = []
    for name, allowed in (("files", 1.0), ("threads", 1.0), ("programs", 1.0), ("memory", 1.05)):
        early = max(point[name] for point in warm[:fifth])
        late = max(point[name] for point in warm[-fifth:])
        if late > allowed * early:
            found.append(f"{name} grew from {early} to {late}")
    rates = [statistics.median(point["steps_per_s"] for point in part) for part in (warm[:fifth], warm[-fifth:])]
    if rates[1] < 0.8 * rates[0]:
        found.append(f"the rate fell from {rates[0]} to {rates[1]} steps/s")
    return found


def main() -> int:
    """Runs the training; 1 if anything grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--matcher", choices=["device", "scipy"], default="device")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="long_run_") as folder:
        points = run(arguments.steps, arguments.workers, arguments.matcher, Path(folder) / "run")
    found = faults(points)
    print(json.dumps({"points": points, "faults": found}))
    return int(bool(found))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
