"""Stops a run after SIGINT (Ctrl-C) or SIGTERM with everything saved, in all processes at the same step."""

import collections
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from detr_jax.leaving import LeaveOnSignal
from detr_jax.sharding import replicated, shard_rows
from detr_jax.signal_thread import SignalThread

STEPS_AHEAD = 2
"""Steps that the host may run ahead of the devices. Each of them holds a batch in the devices' memory."""

_STEP = "stopping after this step, with a checkpoint"
_NOW = "stopping now, with a checkpoint"
_COMPILATION = "stopping after this compilation and one step, with a checkpoint"
_END = "stopping when the last checkpoint is written"
_NOTHING_LOST = "Stopped during the compilation. Nothing is lost: the same command starts there again."


class Interrupted(Exception):
    """A run was stopped by a signal. Everything up to its last step is saved."""

    def __init__(self, step: int, signal_number: int, folder: Path):
        super().__init__(
            f"Stopped: step {step} is saved in {folder / str(step)}. The same command resumes there."
            if step
            else "Stopped before the first step. The same command starts again."
        )
        self.step = step
        self.signal_number = signal_number


class StopSignals:
    """Inside this context the first signal is noted, and a sentence says at once when the run will stop.

    A second signal ends the program as it did before. With the handler `LeaveOnSignal` it does so quietly and at once,
    also while the main thread is busy.

    If the mesh has devices of other processes, a signal to any process stops all of them. At every step, each process
    contributes the signal that it received to a small collective. The result is read a few steps later, when it costs
    no waiting. So all processes read the same result at the same step.

    Args:
      mesh: the devices.
      folder: the folder of the checkpoints, for messages.
    """

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self.received: int | None = None
        """The number of the signal that this process received, if any."""
        self._mesh = mesh
        self._folder = folder
        self._thread = SignalThread(self._hear, self._handle)
        self._heard = 0  # signals, by the thread
        self._handled = False
        self._stop_step: int | None = None
        self._when = _STEP
        self._when_handled = ""  # for the thread, if the main thread is faster
        self._loses_nothing = False
        self._highest = jax.jit(jnp.max, out_shardings=replicated(mesh)) if mesh.is_multi_process else None
        self._contributed: collections.deque[jax.Array] = collections.deque()

    def __enter__(self) -> Self:
        self._thread.__enter__()
        for before in self._thread.previous.values():
            if isinstance(before, LeaveOnSignal):
                before.sentence = ""  # it was about the time before the first step
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.__exit__()

    def after_step(self) -> int | None:
        """The number of a signal after which all processes must stop now, else None. Call it after each step."""
        if self._highest is None:
            return self.received
        self._contributed.append(self._contribute())
        return (int(self._contributed.popleft()) or None) if len(self._contributed) > STEPS_AHEAD else None

    def interrupted(self, step: int, number: int) -> Interrupted:
        """The exception for a run that stops after this step because of this signal."""
        return Interrupted(step, number, self._folder)

    @contextmanager
    def at_once(self, step: int) -> Iterator[Callable[[], None]]:
        """Inside this context a signal raises `Interrupted` at once, because the state of ``step`` can be saved.

        With several processes, only the yielded function raises it. All processes must call it equally often.
        """
        if self._highest is not None:
            yield lambda: self._check(step)
            return
        self._stop_step, self._when = step, _NOW
        try:
            if self.received is not None:
                raise self.interrupted(step, self.received)
            yield lambda: None
        finally:
            self._stop_step, self._when = None, _STEP

    @contextmanager
    def during_compilation(self, *, loses_nothing: bool) -> Iterator[None]:
        """Inside this context, the sentence after a signal says that the compilation must end first.

        With ``loses_nothing`` and the handler `LeaveOnSignal` from before, the process ends at once instead.
        """
        self._when, self._loses_nothing = _COMPILATION, loses_nothing and self._highest is None
        try:
            yield
        finally:
            self._when, self._loses_nothing = _STEP, False

    def finish(self) -> None:
        """Says that all steps are done. From here on, a signal causes nothing but a sentence."""
        self._when = _END

    def _check(self, step: int) -> None:
        if number := int(self._contribute()):
            raise self.interrupted(step, number)

    def _contribute(self) -> jax.Array:
        """The highest number of a signal in any process, [] int32; 0 if there was none."""
        assert self._highest is not None
        own = np.full(len(self._mesh.local_devices), self.received or 0, np.int32)
        return self._highest(shard_rows(own, self._mesh))

    def _hear(self, number: int) -> None:
        """Notes a signal in the thread."""
        self._heard += 1
        self.received = self.received or number
        before = self._thread.previous.get(number)
        if isinstance(before, LeaveOnSignal) and (self._heard > 1 or self._loses_nothing):
            before.leave(number, "" if self._heard > 1 else _NOTHING_LOST)
        if self._heard == 1:
            width = 100 if sys.stdout.isatty() else 0  # covers the progress line
            print((self._when_handled or self._when).ljust(width), flush=True)

    def _handle(self, number: int, frame: Any) -> None:
        """Handles a signal in the main thread, maybe before the thread hears it."""
        if self._handled:
            previous = self._thread.previous.get(number)
            self._thread.restore()
            previous(number, frame) if callable(previous) else signal.raise_signal(number)
            return
        self._handled, self._when_handled = True, self._when
        self.received = self.received or number
        if self._stop_step is not None:
            raise self.interrupted(self._stop_step, number)
