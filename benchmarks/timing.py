"""Candidates timed in turn, and the report of a benchmark: a table and one JSON object."""

import argparse
import gc
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import environment
import jax
import jax.numpy as jnp
from models import MODELS

Candidate = Callable[[int], None]
"""``candidate(calls)`` runs so many calls and waits for the last of them."""


class Timings:
    """Seconds of one call by candidate; those that failed have a sentence in ``failed`` in place of a time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.failed: dict[str, str] = {}


def in_turn(candidates: Mapping[str, Candidate], *, repeats: int, calls: int = 1) -> Timings:
    """Times warm candidates in turn, ``repeats`` rounds of ``calls`` calls each; the medians over the rounds.

    A candidate that raises, out of memory for example, is reported as failed and the others go on.
    """
    timings = Timings()
    rounds: dict[str, list[float]] = {name: [] for name in candidates}

    def attempt(name: str, calls: int) -> float:
        start = time.perf_counter()
        try:
            candidates[name](calls)
        except Exception as error:
            timings.failed[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
            del rounds[name]
        return time.perf_counter() - start

    for name in candidates:
        seconds = attempt(name, 1)
        if seconds > 5:
            print(f"  {name}: first call {seconds:.0f} s", flush=True)
    for name in list(rounds):
        attempt(name, 1)  # compilers may look at a second call
    gc.collect()
    gc.disable()
    for _ in range(repeats):
        for name in list(rounds):
            if jax.default_backend() == "cpu":
                time.sleep(0.2)  # let the other framework's threads stop spinning
            elif calls == 1:
                attempt(name, 1)  # wakes its kernels and memory up after the other's turn
            seconds = attempt(name, calls)
            if name in rounds:
                rounds[name].append(seconds / calls)
    gc.enable()
    timings.seconds = {name: statistics.median(times) for name, times in rounds.items() if times}
    return timings


def against_peers(timings: Timings) -> dict[str, Any]:
    """The part of a row that compares "ours" with the peers: times in seconds, and ratios above 1 where ours is ahead.

    ``ratio`` is against torch "eager", ``ratio_best`` against the fastest peer; None where a side is missing.
    """
    peers = {name: seconds for name, seconds in timings.seconds.items() if name != "ours"}
    ours, eager = timings.seconds.get("ours"), peers.get("eager")
    return {
        "ours_s": ours,
        "peer_s": eager,
        "peer_compiled_s": min((s for name, s in peers.items() if not name.startswith("eager")), default=None),
        "peers_s": peers,
        "failed": timings.failed,
        "ratio": eager / ours if eager and ours else None,
        "ratio_best": min(peers.values()) / ours if peers and ours else None,
    }


class Report:
    """Prints each row of a table as soon as it is known, and keeps the JSON file up to date with it."""

    def __init__(self, columns: Mapping[str, int], path: str | None, **fields: Any):
        self.widths = {name: max(width, len(name)) for name, width in columns.items()}
        self.path = Path(path) if path else None
        if self.path and not self.path.parent.is_dir():
            raise SystemExit(f"--json={path} cannot be written: {self.path.parent} is no folder.")
        self.content: dict[str, Any] = {**machine(), **fields, "rows": []}
        print(", ".join(f"{name} {value}" for name, value in machine().items()))

    def note(self, **fields: Any) -> None:
        """Fields of the JSON object beside its rows."""
        self.content |= fields
        self._write()

    def add(self, row: Mapping[str, Any], cells: Mapping[str, str]) -> None:
        """One row: its fields in the JSON file, its cells in the table."""
        if not self.content["rows"]:
            self._print({name: name for name in self.widths})
        self.content["rows"].append(dict(row))
        self._print(cells)
        for name, reason in row.get("failed", {}).items():
            print(f"  {name} failed: {reason}", flush=True)
        self._write()

    def _print(self, cells: Mapping[str, str]) -> None:
        print("  ".join(f"{cells.get(name, ''):>{width}}" for name, width in self.widths.items()), flush=True)

    def _write(self) -> None:
        if self.path:
            self.path.write_text(json.dumps(self.content, indent=1) + "\n")


def cell(value: float | None, scale: float = 1.0, digits: int = 2) -> str:
    """A number of a table, or a dash."""
    return "-" if value is None else f"{value * scale:.{digits}f}"


def machine() -> dict[str, Any]:
    """The versions and the device that figures belong to."""
    versions = {}
    for package in ("jax", "flax", "torch", "transformers", "scipy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else f"CPU {platform.machine()}"
    return {**versions, "python": platform.python_version(), "device": kind, "threads": environment.THREADS}


def matmul_rate(dtype: str, repeats: int = 5) -> float:
    """FLOP/s of one square matrix product in the dtype, as jax runs it: 8192 wide, on a CPU 2048."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), jnp.bfloat16 if dtype == "bfloat16" else jnp.float32)
    product = jax.jit(jnp.matmul)

    def run(calls: int) -> None:
        result = a
        for _ in range(calls):
            result = product(a, result)
        result.block_until_ready()

    run(2)
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run(10)
        times.append((time.perf_counter() - start) / 10)
    return 2 * size**3 / statistics.median(times)


def common_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of the comparisons with torch."""
    parser.add_argument("--model", choices=tuple(MODELS), default="detr")
    parser.add_argument("--size", type=size, default=(800, 1066), metavar="HxW", help="image size in pixels")
    parser.add_argument("--dtype", type=names("float32", "tf32", "bfloat16"), default=["float32"], metavar="NAME,...")
    parser.add_argument(
        "--peer",
        type=names(*PEERS, "none"),
        default=["eager", "compile"],
        metavar="NAME,...",
        help=f"of {', '.join(PEERS)}; or none",
    )
    parser.add_argument("--repeats", type=positive, default=5, help="rounds that medians are taken over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="write the figures here as one JSON object")


PEERS = tuple(f"{mode}{layout}" for layout in ("", "-nhwc") for mode in ("eager", "compile", "graphs", "whole"))
"""How torch runs. "eager": as it is. "compile": `torch.compile` of all but the loss. "graphs": the same with CUDA
graphs. "whole": the loss too, as far as it compiles; in inference no other than "compile". "-nhwc": channels last."""


def size(text: str) -> tuple[int, int]:
    """ "800x1066" to (height, width)."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give height and width in pixels, as 800x1066")
    return int(height), int(width)


def names(*known: str) -> Callable[[str], list[str]]:
    """A parser of comma-separated names."""

    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not known: choose of {', '.join(known)}")
        return [] if chosen == ["none"] else chosen

    return parse


def positive(text: str) -> int:
    """A positive whole number."""
    if not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive whole number")
    return int(text)


def numbers(text: str) -> list[int]:
    """Comma-separated positive numbers."""
    parts = text.split(",")
    if not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} must be positive numbers, separated by commas")
    return list(map(int, parts))
