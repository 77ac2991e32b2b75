"""What a run tells: ``metrics.jsonl``, TensorBoard files, and a progress line on the terminal."""

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
from tensorboardX import SummaryWriter

from detr_jax.distributed import is_main, wait_for_all
from detr_jax.evaluation.coco import Metrics
from detr_jax.log_names import last_layer_terms


class RunLog:
    """Writes metrics of a run to its workdir and to the terminal.

    ``metrics.jsonl`` holds one JSON object a line with ``step``. A run that goes on from ``start_step`` first drops
    the lines of steps that it will do again. Of several processes, the first writes and all know what is kept.
    """

    def __init__(self, workdir: Path, start_step: int, total_steps: int, batch_size: int):
        self.total_steps = total_steps
        self.batch_size = batch_size
        self._path = workdir / "metrics.jsonl"
        self._kept = [line for line in _read_lines(self._path) if line["step"] <= start_step]
        self._writes = is_main()
        wait_for_all("the workdir was read")
        if self._writes:
            self._path.write_text("".join(json.dumps(line) + "\n" for line in self._kept))
            self._file = self._path.open("a")
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step or None)
        self._on_terminal = sys.stdout.isatty()
        self._since_step, self._since_time = start_step, time.monotonic()

    def validation_at(self, step: int) -> Metrics | None:
        """The validation that was logged at this step, if there was one."""
        for line in self._kept:
            if line["step"] == step and any(name.startswith("val/") for name in line):
                values = {name.removeprefix("val/"): value for name, value in line.items() if name != "step"}
                # earlier versions wrote -1 for what is not defined
                return {name: None if value == -1 else value for name, value in values.items()}
        return None

    @contextmanager
    def uncounted(self, steps: int = 0) -> Iterator[None]:
        """Leaves what happens inside (compilation and its step, validation) out of the rate of training."""
        started = time.monotonic()
        yield
        self._since_time += time.monotonic() - started
        self._since_step += steps

    def training(self, step: int, terms: dict[str, float]) -> None:
        """Logs the mean terms of the steps since the last call, and shows the progress."""
        if not self._writes:
            return
        now = time.monotonic()
        steps, seconds = step - self._since_step, max(now - self._since_time, 1e-9)
        rate = steps * self.batch_size / seconds
        left = (self.total_steps - step) * seconds / steps if steps else float("nan")
        self._write(step, {**{f"train/{name}": value for name, value in terms.items()}, "train/images_per_s": rate})
        digits = 0 if rate >= 10 else 2
        losses = "".join(f"  {name.removeprefix('loss_')} {terms[name]:.3f}" for name in last_layer_terms(terms))
        line = (
            f"step {step}/{self.total_steps}  loss {terms['loss']:.3f}{losses}  {rate:.{digits}f} images/s  "
            f"{_clock(left)} left"
        )
        end = "\r" if self._on_terminal and step < self.total_steps else "\n"
        print(line.ljust(100) if self._on_terminal else line, end=end, flush=True)
        self._since_step, self._since_time = step, now

    def validation(self, step: int, metrics: Metrics) -> None:
        """Logs and prints the metrics of a validation; one that is not defined is null in ``metrics.jsonl``."""
        self._write(step, {f"val/{name}": value for name, value in metrics.items()})
        self.say_validation(step, metrics)

    def say_validation(self, step: int, metrics: Metrics) -> None:
        """Prints the metrics of a validation."""
        shown = {
            name: "none" if value is None else f"{value:.3f}" for name, value in metrics.items() if "/" not in name
        }
        numbers = "  ".join(f"{name} {value}" for name, value in shown.items())
        self.say(f"validation at step {step}: {numbers}")

    def say(self, sentence: str) -> None:
        """Prints a sentence on a line of its own."""
        if self._writes:
            print(sentence.ljust(100) if self._on_terminal else sentence, flush=True)

    def say_anywhere(self, sentence: str) -> None:
        """Prints a sentence that this process alone knows, be it the first or not."""
        if self._writes:
            self.say(sentence)
        else:
            print(f"process {jax.process_index()}: {sentence}", flush=True)

    def close(self) -> None:
        """Writes what is left to write."""
        if self._writes:
            self._file.close()
            self._board.close()

    def _write(self, step: int, values: Mapping[str, float | None]) -> None:
        if not self._writes:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if value is not None:
                self._board.add_scalar(name, value, step)


def _read_lines(path: Path) -> list[dict]:
    """The complete lines of a metrics file; a last line that was cut off by a crash is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def _clock(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown time"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
