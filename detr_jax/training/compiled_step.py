"""The training step, compiled once per bucket before it runs."""

import time
from collections.abc import Callable
from typing import cast

import jax

from detr_jax.sharding import Tree
from detr_jax.structures import BatchInputs
from detr_jax.training.memory import compiled_memory, memory_sentence
from detr_jax.training.state import TrainState
from detr_jax.training.step import TrainStep


class CompiledStep:
    """A training step that is compiled for a shape of batch before it is called with it.

    The memory that it needs is therefore known before it runs, and no step's time contains a compilation.
    """

    def __init__(
        self,
        step: TrainStep,
        frozen: Tree,
        largest: BatchInputs,
        device_memory: int | None,
        say: Callable[[str], None],
    ):
        """Prepares a step.

        Args:
          step: the step of `detr_jax.training.step.create_train_step`.
          frozen: the frozen parameters.
          largest: an abstract batch of the largest bucket. It is compiled first, and its memory is reported.
          device_memory: bytes that each device has, or None if that is not known.
          say: writes a sentence to the log.
        """
        self._step = cast(jax.stages.Wrapped, step)
        self._frozen = frozen
        self._largest = largest
        self._device_memory = device_memory
        self._say = say
        self._compiled: dict[tuple[int, ...], jax.stages.Compiled] = {}
        self.seconds = 0.0
        """Time that all buckets took to compile or, if an earlier run compiled them, to load."""

    def __len__(self) -> int:
        """The number of buckets that the step is compiled for."""
        return len(self._compiled)

    def __contains__(self, batch: BatchInputs) -> bool:
        """Whether the step is compiled for the shape of this batch."""
        return batch.images.shape in self._compiled

    def __call__(self, state: TrainState, batch: BatchInputs) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step on a batch whose shape it was compiled for."""
        return self._compiled[batch.images.shape](state, self._frozen, batch)

    def compile(self, state: TrainState, batch: BatchInputs) -> None:
        """Compiles the step for a batch. The first call compiles it for the largest bucket too."""
        if not self._compiled:
            compiled = self._compile(state, self._largest)
            if memory := compiled_memory(compiled):
                height, width = self._largest.images.shape[1:3]
                self._say(memory_sentence(memory, (height, width), self._device_memory))
        if batch not in self:
            self._compile(state, batch)

    def _compile(self, state: TrainState, batch: BatchInputs) -> jax.stages.Compiled:
        started = time.monotonic()
        compiled = self._compiled[batch.images.shape] = self._step.lower(state, self._frozen, batch).compile()
        seconds = time.monotonic() - started
        self.seconds += seconds
        height, width = batch.images.shape[1:3]
        self._say(f"compiled for bucket {height} x {width} in {seconds:.0f} s")
        return compiled

    def sentence(self) -> str:
        """A sentence for the log with the time of all compilations."""
        return f"compiling the training step, or loading it, took {self.seconds:.0f} s for {len(self)} bucket(s)"
