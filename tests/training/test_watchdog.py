"""Runs that make no progress: they say where they stand, save what they can, and exit with their own code."""

import os
import signal
import subprocess
import sys
import time

import pytest

from detr_jax.checkpoints import newest_checkpoint
from detr_jax.training import watchdog
from detr_jax.training.watchdog import HANG_CODE, HangError, Watchdog
from detr_jax.workdir import read_metrics
from tests.training.started_runs import ROOT, started

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")

_SECONDS = "config.training.hang_seconds = 8"


def _last_saved(run):
    """The step of the newest checkpoint, which the last line of the log must have."""
    newest = newest_checkpoint(run.workdir)
    assert f"The last checkpoint is {newest}" in run.output
    assert read_metrics(run.workdir)[-1]["step"] == int(newest.name)
    return int(newest.name)


def test_a_stopped_worker_process_ends_the_run_with_a_report_and_a_checkpoint(tmp_path):
    with started(tmp_path, f"{_SECONDS}; config.data.num_workers = 2") as run:
        run.wait_for("step 20/")
        stopped, other = run.workers()
        os.kill(stopped, signal.SIGSTOP)
        assert run.wait() == HANG_CODE
    assert _last_saved(run) >= 20
    report = (run.workdir / "hang.txt").read_text()
    assert report in run.output
    assert f"worker process {stopped} is stopped by a signal" in report
    assert f"worker process {other} is " in report
    assert "in _end_with_parent" in report, "the threads of the other worker"
    assert "batch = next(prefetch)" in report, "the main thread"
    assert "resource_tracker" not in run.output


_STUCK_CALLBACK = """
import time
from detr_jax.matching import host

calls, solve = [], host.solve_with_scipy

def sleeping_matcher(*args):
    calls.append(len(calls))
    while len(calls) > 25:
        time.sleep(1)
    return solve(*args)

host.solve_with_scipy = sleeping_matcher
"""


def test_a_stuck_callback_ends_the_run_and_names_the_last_checkpoint(tmp_path):
    change = f"{_SECONDS}; config.loss.matcher = Matcher.SCIPY; config.training.checkpoint_every = 20"
    with started(tmp_path, change, _STUCK_CALLBACK) as run:
        assert run.wait() == HANG_CODE
    newest = newest_checkpoint(run.workdir)
    assert newest.name == "20"
    assert f"The last checkpoint is {newest}" in run.output
    assert "in sleeping_matcher" in (run.workdir / "hang.txt").read_text()


_FIFO = """
from detr_jax.data.shapes import ShapesDataset

read, calls = ShapesDataset.__getitem__, []

def read_a_pipe(self, index):
    calls.append(index)
    if len(calls) > 200:
        open({path!r}).read()
    return read(self, index)

ShapesDataset.__getitem__ = read_a_pipe
"""


def test_an_image_that_cannot_be_read_to_its_end_ends_the_run_with_a_checkpoint(tmp_path):
    os.mkfifo(tmp_path / "image.png")
    with started(tmp_path, _SECONDS, _FIFO.format(path=str(tmp_path / "image.png"))) as run:
        assert run.wait() == HANG_CODE
    assert _last_saved(run) >= 10
    assert "in read_a_pipe" in (run.workdir / "hang.txt").read_text()


def test_progress_keeps_the_watchdog_quiet_and_its_lack_raises_an_error(tmp_path, capsys):
    with Watchdog(0.4, tmp_path) as dog:
        for step in range(6):
            dog.progress(f"in step {step}")
            time.sleep(0.2)
        dog.progress("while compiling", slow=True)
        time.sleep(1)
    with Watchdog(0, tmp_path) as dog:
        time.sleep(0.5)
    assert not list(tmp_path.iterdir())

    def hang():
        with Watchdog(0.4, tmp_path) as dog:
            dog.progress("in step 3")
            time.sleep(20)

    with pytest.raises(HangError, match=r"no progress for . s \(in step 3\).*no checkpoint yet.*hang\.txt"):
        hang()
    assert "time.sleep(20)" in (tmp_path / "hang.txt").read_text()
    assert "no worker processes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGURG) == signal.SIG_DFL


def test_a_main_thread_that_cannot_raise_is_ended(tmp_path):
    program = (
        "import sys, threading; from pathlib import Path; from detr_jax.training import watchdog\n"
        "watchdog._HEAR_SECONDS = 0.5\n"
        "def wait():\n"
        "    with watchdog.Watchdog(0.2, Path(sys.argv[1])) as dog:\n"
        "        dog.progress('in step 1'); threading.Event().wait()\n"
        "threading.Thread(target=wait).start()"
    )
    ended = _run(program, tmp_path)
    assert ended.returncode == HANG_CODE, ended.stderr
    assert "The run made no progress for 0 s (in step 1). There is no checkpoint yet" in ended.stderr
    assert (tmp_path / "hang.txt").is_file()


def test_time_in_which_the_process_is_stopped_does_not_count(tmp_path):
    program = (
        "import os, signal, subprocess, sys, time; from pathlib import Path\n"
        "from detr_jax.training.watchdog import Watchdog\n"
        "with Watchdog(1.5, Path(sys.argv[1])) as dog:\n"
        "    dog.progress('in step 1')\n"
        "    subprocess.Popen(['sh', '-c', f'sleep 3; kill -CONT {os.getpid()}'])\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    time.sleep(0.3)\n"
    )
    ended = _run(program, tmp_path)
    assert ended.returncode == 0, ended.stderr


def _run(program, workdir):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(workdir)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_disk_that_does_not_answer_does_not_stop_the_watchdog():
    assert watchdog.within(0.1, lambda: time.sleep(5) or "late", "default") == "default"
    assert watchdog.within(5, lambda: "in time", "default") == "in time"
    assert watchdog.within(5, lambda: 1 / 0, "default") == "default"
