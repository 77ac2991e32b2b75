"""Measures whether the loader limits training, and warns if it does."""

from detr_jax.config import DataConfig
from detr_jax.data.batching import num_threads, usable_cores

_QUIET_LINES = 20  # log lines between two warnings


class Throughput:
    """Compares the time of a step with the time that the loop waits for batches."""

    def __init__(self, batch_size: int, config: DataConfig):
        self._batch_size = batch_size
        self._config = config
        self._lines = self._limited_lines = self._quiet_until = self._steps = 0
        self._seconds = self._waited = 0.0
        self.step_seconds: float | None = None
        """Seconds of one step that began with idle devices, until its result was there. Measured once per log line."""

    def add(self, seconds: float, waited: float) -> None:
        """Counts a step that took ``seconds`` in the loop, of which it waited ``waited`` seconds for its batch."""
        self._steps += 1
        self._seconds += seconds
        self._waited += waited

    def warning(self) -> str | None:
        """Call this once per log line. Returns a warning with both rates if the loader limits training.

        The loader must limit the last two intervals between log lines, and no warning was given in the last 20 lines.
        """
        steps, seconds, waited, step_seconds = self._steps, self._seconds, self._waited, self.step_seconds
        self._steps, self._seconds, self._waited, self.step_seconds = 0, 0.0, 0.0, None
        self._lines += 1
        limited = (
            step_seconds is not None and steps > 1 and waited > 0.1 * seconds and step_seconds < 0.8 * seconds / steps
        )
        self._limited_lines = self._limited_lines + 1 if limited else 0
        if step_seconds is None or self._limited_lines < 2 or self._lines <= self._quiet_until:
            return None
        self._quiet_until = self._lines + _QUIET_LINES
        delivered, possible = steps * self._batch_size / seconds, self._batch_size / step_seconds
        return (
            f"The loader limits training: it delivers {delivered:.3g} images/s, and the step could process "
            f"{possible:.3g}. {self._advice()}"
        )

    def _advice(self) -> str:
        cores, threads = usable_cores(), num_threads(self._config) * max(1, self._config.num_workers)
        if threads < cores:
            return f"Set data.num_threads=0 for one thread on each of the {cores} cores; now there are {threads}."
        return f"All {cores} cores read images already: give the run more cores, or store the images smaller."
