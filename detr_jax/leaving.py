"""Ends the process at once, without what the end of an interpreter waits for, and quietly.

A normal exit joins threads and worker processes, and unwinds C++ threads. That takes seconds, or for ever if one of
them is stuck.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

_FLUSH_SECONDS = 1
_leaving = threading.Lock()  # never released


def leave(code: int) -> NoReturn:
    """Kills the worker processes, also stopped ones, and ends this process with an exit code. Any thread may call it.

    The shared memory of the workers is freed by Python's resource tracker, a process that ends after this one.
    """
    kill_workers()
    within(_FLUSH_SECONDS, _flush, None)
    os._exit(code)


def kill_workers() -> None:
    """Kills the processes that this process has started with multiprocessing."""
    for worker in multiprocessing.active_children():
        worker.kill()  # SIGKILL: a stopped process gets no other signal


class LeaveOnSignal:
    """A signal handler that prints a sentence and leaves with 128 plus the signal, the exit code of shells.

    It may be called in any thread. Only its first call counts.
    """

    def __init__(self, sentence: str):
        self.sentence = sentence

    def __call__(self, number: int, _: object = None) -> None:
        self.leave(number, self.sentence)

    def leave(self, number: int, sentence: str = "") -> None:
        """Leaves with another sentence, or quietly."""
        if not _leaving.acquire(blocking=False):
            return
        if sentence:
            within(_FLUSH_SECONDS, lambda: print(sentence, file=sys.stderr, flush=True), None)
        distributed = sys.modules.get("detr_jax.distributed")  # an import could wait for the main thread
        if distributed is not None and hasattr(distributed, "end_all") and distributed.is_distributed():
            distributed.end_all("Stopped at once by a signal.", 128 + number)
        leave(128 + number)


def within(seconds: float, function: Callable[[], T], default: T) -> T:
    """The result of a function, or the default if it fails or takes longer than so many seconds.

    It runs in a thread of its own, because the locks and disks that it needs may be what is stuck.
    """
    found = [default]

    def run() -> None:
        with suppress(Exception):
            found[0] = function()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0]


def _flush() -> Any:
    sys.stdout.flush()
    sys.stderr.flush()
