"""Runs that get SIGINT or SIGTERM: what is saved, what is said, how soon they leave, and with which exit code."""

import os
import signal
import time

import pytest

from detr_jax.checkpoints import newest_checkpoint
from detr_jax.workdir import read_metrics
from tests.training.started_runs import started

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")

_NOISE = ("Traceback", "KeyboardInterrupt", "Aborted", "leaked", "Exception ignored", "terminate called")

_BUSY = """
import hashlib

def busy(seconds):
    # a call into C, during which the main thread handles no signals
    start = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(1_000_000 * seconds / (time.monotonic() - start)))

"""


def _assert_quiet(run):
    assert not [word for word in _NOISE if word in run.output], run.output


def test_sigterm_to_all_processes_saves_and_leaves_nothing_behind(tmp_path):
    with started(tmp_path, "config.data.num_workers = 2") as run:
        run.wait_for("step 20/")
        run.signal(signal.SIGTERM)
        asked = time.monotonic()
        assert run.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - asked < 30  # 10 seconds of CPU work on a busy machine
    newest = newest_checkpoint(run.workdir)
    step = read_metrics(run.workdir)[-1]["step"]
    assert run.output.endswith(f"Stopped: step {step} is saved in {newest}. The same command resumes there.\n")
    assert newest.name == str(step)
    assert "stopping " in run.output
    _assert_quiet(run)


def test_sigkill_to_all_processes_leaves_no_shared_memory(tmp_path):
    with started(tmp_path, "config.data.num_workers = 2") as run:
        run.wait_for("step 20/")
        assert run.shared_memory()
        run.signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
    _assert_quiet(run)


_SLOW_CLOSE = """
import time
from detr_jax.checkpoints import Checkpoints
from detr_jax.evaluation.validator import Validator

close, evaluate = Checkpoints.close, Validator.evaluate

def slow_close(self):
    close(self)
    print("closed", flush=True)
    time.sleep(60)

def slow_evaluate(self, found):
    print("evaluating", flush=True)
    time.sleep(60)

Checkpoints.close, Validator.evaluate = slow_close, slow_evaluate
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_leaves_at_once_and_quietly_in_a_validation_too(tmp_path, second):
    change = "config.evaluation.every_epochs = 1; config.data.num_workers = 1"
    with started(tmp_path, change, _SLOW_CLOSE) as run:
        run.wait_for("evaluating")
        run.signal(signal.SIGINT)
        run.wait_for("closed", 20)  # the checkpoint is written
        printed = run.output
        run.signal(second)
        assert run.wait(10) == 128 + second
        assert run.output == printed
    assert "stopping now, with a checkpoint" in printed
    assert newest_checkpoint(run.workdir).name == "6"
    _assert_quiet(run)


_SLOW_COMPILATION = f"""
import time
from detr_jax.training.compiled_step import CompiledStep
{_BUSY}
compile, contains, asked = CompiledStep._compile, CompiledStep.__contains__, []

def slow_compile(self, *args):
    if len(asked) in {{steps}}:
        print("compiling", flush=True)
        busy(6)
        print("compiled", flush=True)
    return compile(self, *args)

def forget(self, batch):
    asked.append(1)
    if len(asked) == 15:
        self._compiled.clear()
    return contains(self, batch)

CompiledStep._compile, CompiledStep.__contains__ = slow_compile, forget
"""


def test_a_signal_during_the_first_compilation_ends_the_run_at_once_with_a_sentence(tmp_path):
    with started(tmp_path, patch=_SLOW_COMPILATION.format(steps="(0, 1)")) as run:
        run.wait_for("compiling")
        run.signal(signal.SIGTERM)
        assert run.wait(60) == 128 + signal.SIGTERM
    assert run.output.endswith(
        "Stopped during the compilation. Nothing is lost: the same command starts there again.\n"
    )
    assert "compiled\n" not in run.output
    _assert_quiet(run)


def test_a_signal_during_a_later_compilation_says_at_once_that_it_must_end_first(tmp_path):
    with started(tmp_path, patch=_SLOW_COMPILATION.format(steps="(15,)")) as run:
        run.wait_for("compiling")
        run.signal(signal.SIGINT)
        run.wait_for("stopping after this compilation and one step, with a checkpoint", 4)
        assert "compiled\n" not in run.output
        assert run.wait() == 128 + signal.SIGINT
    step = int(newest_checkpoint(run.workdir).name)
    assert f"Stopped: step {step} is saved" in run.output
    assert step > 10
    _assert_quiet(run)


_SLOW_DATA = f"""
import time
from detr_jax.training import resolve
{_BUSY}
open_splits = resolve.open_splits

def slow_open(*args, **kwargs):
    print("opening", flush=True)
    busy(30)
    return open_splits(*args, **kwargs)

resolve.open_splits = slow_open
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_preparation_leaves_with_one_sentence(tmp_path, number):
    with started(tmp_path, patch=_SLOW_DATA) as run:
        run.wait_for("opening")
        run.signal(number)
        assert run.wait(10) == 128 + number
    assert run.output.partition("opening\n")[2] == (
        "Stopped before the first step. Nothing is lost: the same command starts again.\n"
    )
    assert not run.workdir.exists()


_WAITING = """
import threading
from detr_jax.data.shapes import ShapesDataset

read, calls = ShapesDataset.__getitem__, []

def wait(self, index):
    calls.append(index)
    if len(calls) > 100:
        print("waiting", flush=True)
        threading.Event().wait()
    return read(self, index)

ShapesDataset.__getitem__ = wait
"""


def test_a_signal_while_a_batch_is_awaited_saves_the_steps_before_it(tmp_path):
    with started(tmp_path, patch=_WAITING) as run:
        run.wait_for("waiting")
        time.sleep(2)  # for the steps before it
        run.signal(signal.SIGTERM)
        assert run.wait(30) == 128 + signal.SIGTERM
    step = int(newest_checkpoint(run.workdir).name)
    assert f"Stopped: step {step} is saved" in run.output
    assert read_metrics(run.workdir)[-1]["step"] == step
    _assert_quiet(run)
