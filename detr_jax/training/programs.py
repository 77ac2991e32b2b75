"""The compiled programs of a training step, one a bucket."""

import time
from typing import cast

import jax

from detr_jax.sharding import Tree
from detr_jax.structures import BatchInputs
from detr_jax.training.memory import StepMemory, program_memory
from detr_jax.training.step import TrainState, TrainStep


class StepPrograms:
    """A training step that is compiled for a shape of batch before it is called with it.

    So the memory that a program needs is known before it runs, and its compilation is not part of any step's time.
    """

    def __init__(self, step: TrainStep):
        self._step = cast(jax.stages.Wrapped, step)
        self._programs: dict[tuple[int, ...], jax.stages.Compiled] = {}
        self.seconds = 0.0
        """Time that all programs took to compile or, where an earlier run compiled them, to load."""

    def __len__(self) -> int:
        return len(self._programs)

    def __contains__(self, batch: BatchInputs) -> bool:
        return batch.images.shape in self._programs

    def compile(self, state: TrainState, frozen: Tree, batch: BatchInputs) -> tuple[float, StepMemory | None]:
        """Compiles the step for a batch, which may hold shapes alone; the seconds that took, and the memory needed."""
        started = time.monotonic()
        program = self._programs[batch.images.shape] = self._step.lower(state, frozen, batch).compile()
        seconds = time.monotonic() - started
        self.seconds += seconds
        return seconds, program_memory(program)

    def __call__(self, state: TrainState, frozen: Tree, batch: BatchInputs) -> tuple[TrainState, dict[str, jax.Array]]:
        """One step on a batch of a shape that it was compiled for."""
        return self._programs[batch.images.shape](state, frozen, batch)

    def sentence(self) -> str:
        """What compilation took of the run."""
        return f"compiling the training step, or loading it, took {self.seconds:.0f} s for {len(self)} bucket(s)"
