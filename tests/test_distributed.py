"""Two processes over loopback train like one process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from detr_jax.checkpoints import find_checkpoint, load_model
from detr_jax.distributed import DistributedError, gathered, is_main, start
from detr_jax.testing import tiny_config
from detr_jax.training.loop import train

ROOT = Path(__file__).parent.parent
STEPS = 2  # after more steps, rounding may decide between two assignments of almost equal cost


def get_config():
    """The configuration of this file's runs: two steps, and a validation whose last batch is not full."""
    config = tiny_config()
    config.loss.matcher = "scipy"
    config.model.encoder_layers, config.model.decoder_layers, config.optimizer.warmup_steps = 0, 1, 1
    config.training.steps, config.training.log_every, config.training.fsdp = STEPS, 1, True
    config.model.feedforward_dim = 256  # large enough to be sharded
    config.evaluation.every_epochs = config.evaluation.snapshots = 0
    config.evaluation.pictures = 2
    return config


def _start_two(workdir, logs, *changes):
    """Two processes of a run, with two devices each. Their output is in the files ``logs``."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    command = [sys.executable, "train.py", f"--config={__file__}", f"--workdir={workdir}", *changes]
    command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--connect_timeout=120"]
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen([*command, f"--process_id={number}"], stdout=log, stderr=log, cwd=ROOT, env=environment)
        for number, log in enumerate(logs)
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs of a run by two processes with two devices each, and by one with four."""
    folder = tmp_path_factory.mktemp("runs")
    logs = [(folder / f"{number}.log").open("w+") for number in range(2)]
    processes = _start_two(folder / "two", logs)
    with jax.numpy_dtype_promotion("standard"):
        train(get_config(), folder / "one")
    try:
        codes = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = [log.seek(0) or log.read() for log in logs]
    assert codes == [0, 0], "\n".join(said)
    return folder / "two", folder / "one", said


def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path):
    logs = [(tmp_path / f"{number}.log").open("w+") for number in range(2)]
    processes = _start_two(tmp_path / "run", logs, "--config.training.steps=100000")
    try:
        until = time.monotonic() + 240
        while "step 3/" not in (tmp_path / "0.log").read_text() and time.monotonic() < until:
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = [log.seek(0) or log.read() for log in logs]
    assert codes == [128 + signal.SIGTERM] * 2, "\n".join(said)
    newest = find_checkpoint(tmp_path / "run")
    for text in said:
        assert f"Stopped: step {newest.name} is saved in {newest}." in text
        assert "Traceback" not in text


def test_two_processes_train_to_the_parameters_of_one(runs):
    for ema in (False, True):
        two, one = (nnx.as_pure(nnx.state(load_model(workdir, ema=ema)[0])) for workdir in runs[:2])
        for a, b in zip(jax.tree.leaves(two), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_losses_and_metrics_are_those_of_one_process(runs):
    two, one = ([json.loads(line) for line in (run / "metrics.jsonl").open()] for run in runs[:2])
    assert [line["step"] for line in two] == [line["step"] for line in one] == [1, 2, 2]
    for a, b in zip(two, one, strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() - {"train/images_per_s", "train/compile_seconds"}:
            same = a[name] is None if b[name] is None else a[name] == pytest.approx(b[name], rel=1e-4, abs=1e-4)
            assert same, name
    found = [np.load(run / "detections.npz") for run in runs[:2]]
    np.testing.assert_array_equal(found[0]["image_ids"], found[1]["image_ids"])
    np.testing.assert_allclose(found[0]["boxes"], found[1]["boxes"], atol=1e-2)


def test_only_the_first_process_prints_and_writes(runs):
    two, one, said = runs
    assert "4 cpu device(s)" in said[0]
    assert f"validation at step {STEPS}" in said[0]
    assert not [line for line in said[1].splitlines() if "step" in line or "device(s)" in line]
    assert find_checkpoint(two / "best").name == str(STEPS)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("10.0.0.1", 2, 0), "--coordinator=10.0.0.1 must be HOST:PORT"),
        (("10.0.0.1:many", 2, 0), "must be HOST:PORT"),
        (("10.0.0.1:8476", 2, 2), "--process-id=2 must be from 0 to 1"),
        (("10.0.0.1:8476", 2, -1), "--process-id=-1 must be from 0 to 1"),
        (("10.0.0.1:8476", 0, 0), "--num-processes=0 must be at least 1"),
        (("10.0.0.1:8476", 2, None), "--coordinator also needs"),
    ],
)
def test_wrong_arguments_are_refused_before_a_connection_is_tried(arguments, words):
    with pytest.raises(DistributedError) as caught:
        start(*arguments)
    assert words in str(caught.value)


def test_errors_name_a_port_in_use_and_a_coordinator_that_does_not_listen():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DistributedError, match=f"Port {port} of --coordinator cannot be opened"):
            start(f"127.0.0.1:{port}", 2, 0)
    with pytest.raises(DistributedError, match=f"127.0.0.1:{port} could not be reached within 0 s"):
        start(f"127.0.0.1:{port}", 2, 1, timeout=0)


def test_one_process_is_the_first_and_gathers_from_itself():
    assert is_main()
    np.testing.assert_array_equal(gathered([3, 4]), [[3, 4]])
