"""Ends a training that no longer makes progress, and says where it stood.

A step can wait for ever: for a stopped worker process, for a file on a dead disk, for a callback, or for another host.
"""

import os
import signal
import socket
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Self

import jax

from detr_jax.checkpoints import newest_checkpoint
from detr_jax.data.worker_processes import workers_report
from detr_jax.distributed import end_all, is_distributed
from detr_jax.leaving import kill_workers, leave, within
from detr_jax.printing import printable
from detr_jax.training.error import TrainingError

HANG_CODE = 75
"""Exit code of a process that its watchdog ended: EX_TEMPFAIL of sysexits.h, so try again."""

HANG_FILE = "hang.txt"

SLOW = 10
"""How many times longer the start of a run and a compilation may take."""

_RAISE = getattr(signal, "SIGURG", None)  # ignored if it comes when its handler is gone
_HEAR_SECONDS = 10  # to raise the error in the main thread
_UNWIND_SECONDS = 300  # to save and close, after the error was raised
_DISK_SECONDS = 10  # to write the report


class HangError(TrainingError):
    """No progress was made for too long."""

    def __init__(self, seconds: float, doing: str, workdir: Path):
        super().__init__(seconds, doing, workdir)
        self._seconds, self._doing, self._workdir = seconds, doing, workdir

    def __str__(self) -> str:
        newest = within(_DISK_SECONDS, lambda: newest_checkpoint(self._workdir), None)
        saved = f"The last checkpoint is {newest}" if newest else "There is no checkpoint yet"
        return (
            f"The run made no progress for {self._seconds:.0f} s ({self._doing}). {saved}, and the same command starts "
            f"there again. {report_file(self._workdir)} says where each thread and worker process stood. If the run is "
            "only slow, raise training.hang_seconds."
        )


class Watchdog:
    """Inside this context, the process must call `progress` again and again.

    If it does not, the watchdog writes a report to stderr and to ``WORKDIR/hang.txt``. Then it raises a `HangError` in
    the main thread, which saves what can be saved, and kills the worker processes. If the main thread cannot raise it,
    because it waits inside of C++, or does not end in time, the process exits with `HANG_CODE`.

    Time in which the whole process is stopped, such as by Ctrl-Z, does not count.

    Args:
      seconds: longest time between two calls of `progress`. 0: no limit.
      workdir: the folder of the run.
    """

    def __init__(self, seconds: float, workdir: Path):
        self._seconds = seconds
        self._workdir = workdir
        self._tick = min(1.0, seconds / 20)
        self._passed = 0.0
        self._allowed = seconds * SLOW
        self._doing = "at the start of the run"
        self._ended = threading.Event()
        self._raised = threading.Event()
        self._error = HangError(seconds, "", workdir)
        self._handler: Any = None
        self._can_raise = False

    def __enter__(self) -> Self:
        if self._seconds:
            if _RAISE is not None and threading.current_thread() is threading.main_thread():
                self._handler, self._can_raise = signal.signal(_RAISE, self._raise), True
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._can_raise and _RAISE is not None:
            signal.signal(_RAISE, self._handler)

    def progress(self, doing: str, *, slow: bool = False) -> None:
        """Says that something was finished, and what the process does next.

        Args:
          doing: what it does next, such as "in step 7".
          slow: this may take `SLOW` times as long.
        """
        self._doing, self._allowed, self._passed = doing, self._seconds * (SLOW if slow else 1), 0.0

    def _watch(self) -> None:
        last = time.monotonic()
        while self._passed <= self._allowed:
            if self._ended.wait(self._tick):
                return
            now = time.monotonic()
            self._passed += min(now - last, 2 * self._tick)  # more passes only while the process is stopped
            last = now
        self._error = HangError(self._passed, self._doing, self._workdir)
        self._write_report()
        if self._can_raise and _RAISE is not None:
            signal.pthread_kill(threading.main_thread().ident or 0, _RAISE)
            raised = self._raised.wait(_HEAR_SECONDS)
            kill_workers()  # the main thread waits for them when it closes the stream of batches
            if raised and self._ended.wait(_UNWIND_SECONDS):
                return
        print(printable(self._error), file=sys.stderr, flush=True)
        if is_distributed():
            end_all(str(self._error), HANG_CODE)
        leave(HANG_CODE)

    def _raise(self, *_: object) -> None:
        """Raises the error in the main thread."""
        self._raised.set()
        raise self._error

    def _write_report(self) -> None:
        text = hang_report(f"no progress for {self._passed:.0f} s, {self._doing}")
        print(printable(text), file=sys.stderr, flush=True)

        def write() -> None:
            self._workdir.mkdir(parents=True, exist_ok=True)
            report_file(self._workdir).write_text(text)

        within(_DISK_SECONDS, write, None)


def report_file(workdir: Path) -> Path:
    """The file for the report of this process. Process 0 has ``hang.txt``, and process 1 has ``hang-1.txt``."""
    number = jax.process_index() if is_distributed() else 0
    return workdir / (HANG_FILE if number == 0 else f"hang-{number}.txt")


def hang_report(sentence: str) -> str:
    """Where each thread of this process stands in Python, and the state of each worker process, as text."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    parts = [f"{now}, process {os.getpid()} on {socket.gethostname()}: {sentence}"]
    parts.append(workers_report())
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    for number, frame in sorted(sys._current_frames().items(), key=lambda item: item[0] != main):
        if number != threading.get_ident():
            parts.append(f"thread {names.get(number, number)}, innermost call last:\n{_stack(frame)}")
    return "\n\n".join(parts) + "\n"


def _stack(frame: FrameType) -> str:
    return "".join(traceback.format_stack(frame)).rstrip()
