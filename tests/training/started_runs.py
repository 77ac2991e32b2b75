"""Trainings in processes of their own, for tests of signals and hangs."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.clean_exits import unowned
from tests.kill_anywhere import shared_memory

ROOT = Path(__file__).resolve().parents[2]

CONFIG = """
import dataclasses, time
from detr_jax.config import *
from detr_jax.testing import tiny_config

def get_config():
    config = tiny_config()
    config.training.steps, config.training.checkpoint_every, config.training.log_every = 100_000, 1000, 10
    config.evaluation.every_epochs = config.evaluation.snapshots = config.evaluation.pictures = 0
    {change}
    return config
"""


class StartedRun:
    """A training in a process group of its own, whose output is in a file."""

    def __init__(self, folder: Path, change: str = "pass", patch: str = ""):
        """Starts it.

        Args:
          folder: for its files.
          change: statements that change the ``config``, separated by semicolons.
          patch: Python code before the configuration.
        """
        config, self.workdir, self.log = folder / "config.py", folder / "run", folder / "log"
        config.write_text(patch + CONFIG.format(change=change))
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--workdir", str(self.workdir)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=file, cwd=ROOT, env=environment, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 180) -> None:
        """Returns when it has printed a text."""
        until = time.monotonic() + seconds
        while text not in self.output:
            assert time.monotonic() < until, f"it has not printed {text!r}:\n{self.output}"
            assert self.process.poll() is None, f"it has ended without {text!r}:\n{self.output}"
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Sends a signal to the whole process group."""
        os.killpg(self.process.pid, number)

    def workers(self) -> list[int]:
        """The process ids of its worker processes."""
        return [
            process
            for process, command in self.processes().items()
            if "spawn_main" in command and process != self.process.pid
        ]

    def processes(self) -> dict[int, str]:
        """The command of each living process of its group, by process id. On Linux only."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == self.process.pid and fields[0] != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def wait(self, seconds: float = 180) -> int:
        """Its exit code. Nothing of its group may be left two seconds later."""
        code = self.process.wait(seconds)
        until = time.monotonic() + 2
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.05)
        assert not left, left
        return code


def left_in_shared_memory(before: set[str], seconds: float = 10) -> set[str]:
    """The names that are new since ``before``, and that no process has mapped for so many seconds."""
    until = time.monotonic() + seconds
    new = unowned(shared_memory() - before)
    while new and time.monotonic() < until:
        time.sleep(0.1)
        new = unowned(new)
    return new


@contextmanager
def started(folder: Path, change: str = "pass", patch: str = ""):
    """A `StartedRun` that is killed at the end, if it is still there."""
    run = StartedRun(folder, change, patch)
    try:
        yield run
    finally:
        with suppress(ProcessLookupError):
            run.signal(signal.SIGKILL)
        run.process.wait()
