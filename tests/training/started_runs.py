"""Trainings in processes of their own, for tests of signals and hangs."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.clean_exits import one_device
from tests.own_shared_memory import OwnSharedMemory

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
        memory = self._memory = OwnSharedMemory(folder)
        config.write_text(patch + CONFIG.format(change=change))
        command = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--workdir", str(self.workdir)]
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                command,
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env=memory.environment(one_device()),
                start_new_session=True,
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

    def shared_memory(self) -> list[str]:
        """The names of its shared memory and its semaphores."""
        return self._memory.left()

    def wait(self, seconds: float = 180) -> int:
        """Its exit code. No process of its group and no shared memory may be left a few seconds later."""
        code = self.process.wait(seconds)
        until = time.monotonic() + 5
        while (left := (self.processes(), self.shared_memory())) != ({}, []) and time.monotonic() < until:
            time.sleep(0.05)
        assert left == ({}, []), left
        return code


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
