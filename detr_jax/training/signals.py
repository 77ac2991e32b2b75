"""Stopping a run in good order on SIGINT (Ctrl-C) and SIGTERM."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self


class Interrupted(Exception):
    """A run was asked to stop, and has saved what it reached."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"Stopped at step {step}; the same command goes on from there.")
        self.signal_number = signal_number


class StopSignals:
    """While entered, notes the first signal; a second one ends the program as it always does."""

    def __init__(self) -> None:
        self.received: int | None = None
        """Number of the signal that came, if one did."""
        self._saved_step: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in map(int, (signal.SIGINT, signal.SIGTERM)):
            try:
                self._handlers[number] = signal.signal(number, self._receive)
            except ValueError:  # signals can only be received in the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @contextmanager
    def at_once(self, saved_step: int) -> Iterator[None]:
        """Inside, everything up to ``saved_step`` is saved, and a signal raises `Interrupted` right away."""
        self._saved_step = saved_step
        if self.received is not None:
            raise Interrupted(saved_step, self.received)
        try:
            yield
        finally:
            self._saved_step = None

    def _receive(self, number: int, _: Any) -> None:
        self.received = number
        self._restore()
        if self._saved_step is not None:
            raise Interrupted(self._saved_step, number)
        print("stopping after this step, with a checkpoint", flush=True)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
