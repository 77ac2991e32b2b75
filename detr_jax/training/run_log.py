"""The log of a run: ``metrics.jsonl``, TensorBoard files, a progress line on the terminal, and a callback."""

import errno
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax

from detr_jax.config import OnWriteError, TrainingConfig
from detr_jax.distributed import is_main, wait_for_all
from detr_jax.evaluation.coco import Metrics
from detr_jax.log_names import last_layer_terms
from detr_jax.printing import printable
from detr_jax.training.appended_file import AppendedFile
from detr_jax.training.board import Board
from detr_jax.workdir import METRICS_FILE, WorkdirError, read_metrics, replace_text

OnLog = Callable[[int, dict[str, float]], object]
"""Receives a step and the numbers that were logged there."""


class RunLog:
    """Writes the metrics of a run to its workdir and to the terminal.

    Each line of ``metrics.jsonl`` holds one JSON object with ``step``. With several processes only process 0 writes.
    """

    def __init__(
        self,
        workdir: Path,
        start_step: int,
        total_steps: int,
        config: TrainingConfig,
        on_log: OnLog | None = None,
    ):
        """Opens the files. Lines of steps after ``start_step`` are dropped, as a resumed run does these steps again.

        ``on_log`` is called on process 0 after each new line.

        Raises:
          WorkdirError: a file cannot be written.
        """
        self.total_steps = total_steps
        self.batch_size = config.batch_size
        self._policy = config.on_write_error
        self._on_log = on_log
        path = workdir / METRICS_FILE
        self._kept = [line for line in read_metrics(workdir) if line["step"] <= start_step]
        self._writes = is_main()
        wait_for_all("the workdir was read")
        if self._writes:
            kept = "".join(json.dumps(line) + "\n" for line in self._kept)
            if not path.is_file() or path.read_bytes() != kept.encode():  # a start changes only what it must
                replace_text(path, kept)
            self._lines = AppendedFile(path)
            self._board = Board(workdir / "tensorboard", self._kept)
        self._on_terminal = sys.stdout.isatty()
        self._since_step, self._since_time = start_step, time.monotonic()

    def validation_at(self, step: int) -> Metrics | None:
        """The metrics of the validation that an earlier run logged at this step, if there was one."""
        for line in self._kept:
            if line["step"] == step and any(name.startswith("val/") for name in line):
                values = {name.removeprefix("val/"): value for name, value in line.items() if name != "step"}
                # earlier versions wrote -1 if a metric is not defined
                return {name: None if value == -1 else value for name, value in values.items()}
        return None

    @contextmanager
    def uncounted(self, steps: int = 0) -> Iterator[None]:
        """Excludes the time inside, and ``steps`` steps, from the rate of training."""
        started = time.monotonic()
        yield
        self._since_time += time.monotonic() - started
        self._since_step += steps

    def training(self, step: int, terms: dict[str, float]) -> None:
        """Logs the mean terms of the steps since the last call, and prints the progress."""
        if not self._writes:
            return
        now = time.monotonic()
        steps, seconds = step - self._since_step, max(now - self._since_time, 1e-9)
        rate = steps * self.batch_size / seconds
        left = (self.total_steps - step) * seconds / steps if steps else float("nan")
        digits = 0 if rate >= 10 else 2
        losses = "".join(f"  {name.removeprefix('loss_')} {terms[name]:.3f}" for name in last_layer_terms(terms))
        loss = f"{terms['loss']:.3f}" if "loss" in terms else "none"
        progress = f"step {step}/{self.total_steps}  loss {loss}{losses}"
        line = f"{progress}  {rate:.{digits}f} images/s  {_clock(left)} left"
        end = "\r" if self._on_terminal and step < self.total_steps else "\n"
        _print(line.ljust(100) if self._on_terminal else line, end)
        self._since_step, self._since_time = step, now
        self._write(step, {**{f"train/{name}": value for name, value in terms.items()}, "train/images_per_s": rate})

    def validation(self, step: int, metrics: Metrics) -> None:
        """Logs and prints the metrics of a validation. In ``metrics.jsonl`` a metric that is not defined is null."""
        self.say_validation(step, metrics)
        self._write(step, {f"val/{name}": value for name, value in metrics.items()})

    def say_validation(self, step: int, metrics: Metrics) -> None:
        """Prints the metrics of a validation."""
        shown = {
            name: "none" if value is None else f"{value:.3f}" for name, value in metrics.items() if "/" not in name
        }
        numbers = "  ".join(f"{name} {value}" for name, value in shown.items())
        self.say(f"validation at step {step}: {numbers}")

    def say(self, sentence: str) -> None:
        """Prints a sentence on a line of its own, on process 0."""
        if self._writes:
            _print(sentence.ljust(100) if self._on_terminal else sentence)

    def say_anywhere(self, sentence: str) -> None:
        """Prints a sentence of this process. Any process may call this."""
        if self._writes:
            self.say(sentence)
        else:
            _print(f"process {jax.process_index()}: {sentence}")

    def finish(self) -> None:
        """Writes the lines that could not be written before.

        Raises:
          WorkdirError: they cannot be written.
        """
        if self._writes:
            self._lines.flush()
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._writes:
            self._lines.close()
            self._board.close()

    def _write(self, step: int, values: Mapping[str, float | None]) -> None:
        if not self._writes:
            return
        line = json.dumps({"step": step, **values}) + "\n"
        for write in (lambda: self._lines.append(line.encode()), lambda: self._board.add(step, values)):
            try:
                write()
            except WorkdirError as error:
                if self._policy == OnWriteError.STOP:
                    raise
                self.say(f"{error} The run goes on, and tries it again with the next line.")
        if self._on_log is not None:
            self._on_log(step, {name: value for name, value in values.items() if value is not None})


def _print(text: str, end: str = "\n") -> None:
    """Prints a text, also if the output goes to a file on a full disk. Then it is printed with the next one."""
    try:
        print(printable(text), end=end, flush=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown time"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
