"""What worker processes do about signals and the end of their parent, and where they stand.

`prepare_worker` runs in each worker, the other functions in the parent.
"""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker, util
from pathlib import Path

_TRACES = "detr_jax_traces"
_ASK = getattr(signal, "SIGURG", None)  # a process that does not expect it ignores it
_ANSWER_SECONDS = 2
_LONGEST_LIFE = 60  # seconds that a worker lives on after SIGTERM if its parent does not end it
_STATES = {
    "R": "running",
    "S": "waiting",
    "D": "blocked in the kernel, such as by a disk",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "Z": "ended",
}


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Processes that are started inside this context have SIGINT and SIGTERM blocked until `prepare_worker`.

    So a signal to the whole process group, such as Ctrl-C, reaches the parent alone.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_resource_tracker() -> None:
    """Starts Python's resource tracker, unless it runs, outside of the process group and without its warnings.

    It frees the shared memory and the semaphores that a kill leaves behind, also one of the whole group with SIGKILL.
    """
    if os.name != "posix":
        return
    options, spawn = list(sys.warnoptions), util.spawnv_passfds

    def spawn_outside(path: bytes, arguments: list[str], descriptors: list[int]) -> int:
        *others, program = arguments
        return spawn(path, [*others, f"import os; os.setsid(); {program}"], descriptors)

    sys.warnoptions.append("ignore:resource_tracker:UserWarning")  # options of the interpreter that runs the tracker
    util.spawnv_passfds = spawn_outside  # type: ignore[assignment]
    try:
        resource_tracker.ensure_running()
    finally:
        util.spawnv_passfds = spawn
        sys.warnoptions[:] = options


def prepare_worker() -> None:
    """Leaves Ctrl-C and SIGTERM to the parent process, and ends this process when the parent has ended for any reason.

    On Linux, the process writes where its threads stand into a file in memory when `traces_of` asks for it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    if _ASK is not None and hasattr(os, "memfd_create"):
        faulthandler.register(_ASK, file=os.memfd_create(_TRACES), all_threads=True)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _end_later(number: int, _: object) -> None:
    """Gives the parent, which usually has the same signal, time to end this process."""
    late = threading.Timer(_LONGEST_LIFE, os._exit, [128 + number])
    late.daemon = True
    late.start()


def workers_report() -> str:
    """The state and the id of each worker process of this process, and where its threads stand if it says so."""
    workers = multiprocessing.active_children()
    lines = []
    for worker in workers:
        if worker.pid is not None:
            lines.append(f"worker process {worker.pid} is {state_of(worker.pid)}")
            lines += [f"  {line}" for line in traces_of(worker.pid).splitlines()]
    return "\n".join(lines or ["no worker processes"])


def state_of(process: int) -> str:
    """What a process does, in words. On Linux only."""
    try:
        letter = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "in an unknown state"
    return _STATES.get(letter, f"in state {letter}")


def traces_of(process: int) -> str:
    """Where the threads of a worker process stand; empty if it does not answer, as a stopped process does not."""
    for link in Path(f"/proc/{process}/fd").glob("*"):
        with suppress(OSError):
            if _TRACES in os.readlink(link) and _ASK is not None:
                os.kill(process, _ASK)
                until, before = time.monotonic() + _ANSWER_SECONDS, ""
                while time.monotonic() < until:
                    time.sleep(0.1)
                    text = link.read_text(errors="replace")
                    if text and text == before:  # it is complete
                        return text
                    before = text
                return before
    return ""
