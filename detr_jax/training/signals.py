"""Stops a run after SIGINT (Ctrl-C) or SIGTERM with everything saved, in all processes at the same step."""

import collections
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from detr_jax.sharding import replicated, shard_rows

STEPS_AHEAD = 2
"""Steps that the host may run ahead of the devices. Each of them holds a batch in the devices' memory."""


class Interrupted(Exception):
    """A run was stopped by a signal. Everything up to its last step is saved."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"Stopped at step {step}. The same command resumes from there.")
        self.signal_number = signal_number


class StopSignals:
    """Inside this context the first signal is noted. A second signal ends the program as usual.

    If the mesh has devices of other processes, a signal to any process stops all of them. At every step, each process
    contributes the signal that it received to a small collective. The result is read a few steps later, when it costs
    no waiting. So all processes read the same result at the same step.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.received: int | None = None
        """The number of the signal that this process received, if any."""
        self._mesh = mesh
        self._saved_step: int | None = None
        self._handlers: dict[int, Any] = {}
        self._highest = jax.jit(jnp.max, out_shardings=replicated(mesh)) if mesh.is_multi_process else None
        self._contributed: collections.deque[jax.Array] = collections.deque()

    def __enter__(self) -> Self:
        for number in map(int, (signal.SIGINT, signal.SIGTERM)):
            try:
                self._handlers[number] = signal.signal(number, self._receive)
            except ValueError:  # signals can only be received in the main thread
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def after_step(self) -> int | None:
        """The number of a signal after which all processes must stop now, else None. Call it after each step."""
        if self._highest is None:
            return self.received
        self._contributed.append(self._contribute())
        return (int(self._contributed.popleft()) or None) if len(self._contributed) > STEPS_AHEAD else None

    @contextmanager
    def at_once(self, saved_step: int) -> Iterator[Callable[[], None]]:
        """Inside this context a signal raises `Interrupted` at once, because everything up to ``saved_step`` is saved.

        With several processes, only the yielded function raises it. All processes must call it equally often.
        """
        if self._highest is not None:
            yield lambda: self._check(saved_step)
            return
        self._saved_step = saved_step
        if self.received is not None:
            raise Interrupted(saved_step, self.received)
        try:
            yield lambda: None
        finally:
            self._saved_step = None

    def _check(self, saved_step: int) -> None:
        if number := int(self._contribute()):
            raise Interrupted(saved_step, number)

    def _contribute(self) -> jax.Array:
        """The highest number of a signal in any process, [] int32; 0 if there was none."""
        assert self._highest is not None
        own = np.full(len(self._mesh.local_devices), self.received or 0, np.int32)
        return self._highest(shard_rows(own, self._mesh))

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
