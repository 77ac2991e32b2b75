"""The process of a benchmark: where it finds the packages, and how jax and torch share the machine.

Import it before anything that starts jax.
"""

import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # detr_jax and tests, installed or not
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leave torch its part of a GPU
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""What both frameworks use on a CPU."""

PARENT = "DETR_JAX_BENCHMARK_PARENT"
"""The environment variable with the process id of the benchmark, for the processes that it starts."""


def for_child() -> dict[str, str]:
    """The environment variables of a process that calls `end_with_parent`."""
    return {**os.environ, PARENT: str(os.getpid())}


def end_with_parent() -> None:
    """Ends this process soon after the benchmark that started it has ended for any reason, by a signal for example."""
    parent = int(os.environ[PARENT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def peak_memory_of_process() -> int | None:
    """The most bytes of memory that this process has held; None if the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
