"""Ctrl-C in commands: it always raises KeyboardInterrupt, and the end of the interpreter stays quiet."""

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from detr_jax.leaving import LeaveOnSignal

_DROPPED_IN = "_xla_gc_callback"
"""JAX's function in Python's garbage collection. Python prints and drops an exception that a signal raises there."""

_AGAIN_SECONDS = 0.05


@contextmanager
def never_dropped() -> Iterator[None]:
    """Inside this context, Ctrl-C raises KeyboardInterrupt also if it comes during a garbage collection."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_quietly() -> None:
    """From now on, Ctrl-C leaves at once. Call it when only the end of the interpreter is left."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, LeaveOnSignal(""))


def _interrupt(number: int, frame: FrameType | None) -> None:
    if frame is not None and frame.f_code.co_name == _DROPPED_IN:
        again = threading.Timer(_AGAIN_SECONDS, _thread.interrupt_main)
        again.daemon = True
        again.start()
        return
    raise KeyboardInterrupt
