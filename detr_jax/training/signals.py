"""Stopping a run in good order on SIGINT (Ctrl-C) and SIGTERM, all of its processes at the same step."""

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
"""Steps that the host may run ahead of the devices; each holds a batch in their memory."""


class Interrupted(Exception):
    """A run was asked to stop, and has saved what it reached."""

    def __init__(self, step: int, signal_number: int):
        super().__init__(f"Stopped at step {step}; the same command goes on from there.")
        self.signal_number = signal_number


class StopSignals:
    """While entered, notes the first signal; a second one ends the program as it always does.

    Where the mesh has devices of other processes, a signal to any of them stops all: at every step each contributes
    what it has received to a small collective, which is read when that costs no wait, so all read the same at the
    same step.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.received: int | None = None
        """Number of the signal that came to this process, if one did."""
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
        """Number of a signal after which the run is to stop now, in all processes; to be called after each step."""
        if self._highest is None:
            return self.received
        self._contributed.append(self._contribute())
        return (int(self._contributed.popleft()) or None) if len(self._contributed) > STEPS_AHEAD else None

    @contextmanager
    def at_once(self, saved_step: int) -> Iterator[Callable[[], None]]:
        """Inside, everything up to ``saved_step`` is saved, and a signal raises `Interrupted` right away.

        In several processes it does so in the function that is given, which all call as often.
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
        """The highest number of a signal in any process, 0 where none came."""
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
