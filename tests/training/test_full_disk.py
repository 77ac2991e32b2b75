"""A disk that is full for a while. A limit on the size of files makes writes fail as a full disk does."""

import contextlib
import resource

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from detr_jax.checkpoints import Checkpoints, CheckpointWriteError, checkpoints_of, load_model
from detr_jax.testing import tiny_config
from detr_jax.training import loop
from detr_jax.training.appended_file import AppendedFile
from detr_jax.training.board import points
from detr_jax.training.run_log import RunLog
from detr_jax.training.saving import StateSaver
from detr_jax.workdir import WorkdirError, read_metrics, replace_text

_SIZE = 30_000
"""Bytes that the log of a run stays below, and the arrays of a checkpoint do not."""


def _limit(size=None):
    """Files cannot grow beyond this size in bytes. None: they can."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


@pytest.fixture(autouse=True)
def no_limit():
    yield
    _limit()


def _config(policy):
    config = tiny_config()
    config.training.steps, config.training.checkpoint_every, config.training.log_every = 14, 2, 1
    config.training.on_write_error, config.training.keep_checkpoints = policy, 20
    config.evaluation.pictures = config.evaluation.snapshots = config.evaluation.every_epochs = 0
    return config


def _arrays(workdir):
    trees = ocp.load_checkpointables(checkpoints_of(workdir)[0], {"params": None, "ema": None, "optimizer": None})
    return [np.asarray(x) for x in jax.tree.leaves(trees)]


def _lines(workdir):
    timed = ("images_per_s", "compile_seconds", "programs")
    return [{name: x for name, x in line.items() if not name.endswith(timed)} for line in read_metrics(workdir)]


def _assert_same(workdir, calm):
    for ours, expected in zip(_arrays(workdir), _arrays(calm), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert _lines(workdir) == _lines(calm)
    assert points(workdir / "tensorboard") == points(calm / "tensorboard")


@pytest.fixture(scope="module")
def calm(one_device, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("calm") / "run"
    loop.train(_config("stop"), workdir, mesh=one_device)
    return workdir


def test_by_default_the_run_ends_with_a_sentence_and_resumes_when_there_is_space(one_device, tmp_path, calm):
    def on_log(step, _):
        _limit(_SIZE if step >= 5 else None)

    workdir = tmp_path / "run"
    with pytest.raises((CheckpointWriteError, WorkdirError), match=r"(could not|cannot) be written"):
        loop.train(_config("stop"), workdir, mesh=one_device, on_log=on_log)
    with pytest.raises((CheckpointWriteError, WorkdirError), match=r"(could not|cannot) be written"):
        loop.train(_config("stop"), workdir, mesh=one_device)  # it is still full
    _limit()
    assert [int(path.name) for path in checkpoints_of(workdir)] in ([4, 2], [2])  # 4 was perhaps still being written
    load_model(workdir)
    loop.train(_config("stop"), workdir, mesh=one_device)
    _assert_same(workdir, calm)


def test_with_continue_the_run_goes_on_and_loses_nothing(one_device, tmp_path, calm, capsys):
    def on_log(step, _):
        _limit(_SIZE if 5 <= step < 9 else None)

    workdir = tmp_path / "run"
    loop.train(_config("continue"), workdir, mesh=one_device, on_log=on_log)
    printed = capsys.readouterr().out
    assert "Checkpoint 6 could not be written" in printed
    found = [int(path.name) for path in checkpoints_of(workdir)]
    assert {14, 12, 10, 2} <= set(found)
    assert 6 not in found
    _assert_same(workdir, calm)


def test_with_continue_the_last_checkpoint_must_be_written(one_device, tmp_path, calm):
    def on_log(step, _):
        _limit(_SIZE if step > 11 else None)

    workdir = tmp_path / "run"
    with pytest.raises((CheckpointWriteError, WorkdirError), match=r"(could not|cannot) be written"):
        loop.train(
            _config("continue"), workdir, mesh=one_device, on_log=lambda step, _: _limit(500) if step > 11 else 0
        )
    _limit()
    loop.train(_config("continue"), workdir, mesh=one_device)
    _assert_same(workdir, calm)


def test_a_checkpoint_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    import shutil

    tree = {"x": np.zeros(1000, np.float32)}
    found = Checkpoints(tmp_path / "checkpoints", 3)
    with contextlib.closing(found):
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3999))
        with pytest.raises(CheckpointWriteError, match=r"Checkpoint 1 .*\(it needs 0.00381 MiB, and .* are free\)"):
            found.save(1, {"params": tree}, tiny_config())
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4000))
        found.save(1, {"params": tree}, tiny_config())
    assert [path.name for path in checkpoints_of(tmp_path)] == ["1"]


def test_records_are_appended_whole_or_not_at_all(tmp_path, rng):
    path = tmp_path / "log"
    file = AppendedFile(path)
    records = [bytes(rng.integers(97, 122, rng.integers(1, 90), dtype=np.uint8)) + b"\n" for _ in range(60)]
    _limit(700)
    failed = 0
    for record in records:
        with contextlib.suppress(WorkdirError):
            file.append(record)
            continue
        failed += 1
        whole = path.read_bytes()
        assert b"".join(records).startswith(whole)
        assert whole.endswith(b"\n")
    assert failed
    with pytest.raises(WorkdirError, match=r"log cannot be written \(File too large\)"):
        file.append(b"")
    _limit()
    file.append(b"last\n")
    file.close()
    assert path.read_bytes() == b"".join(records) + b"last\n"


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_lines_of_the_log_follow_the_policy(tmp_path, policy, capsys):
    config = _config(policy).training
    log = RunLog(tmp_path, 0, 30, config)
    terms = {f"term_{i}": float(i) for i in range(30)} | {"loss": 1.0}
    _limit(10_000)
    with contextlib.nullcontext() if policy == "continue" else pytest.raises(WorkdirError):
        for step in range(1, 25):
            log.training(step, terms)
    _limit()
    if policy == "continue":
        log.training(25, terms)
        assert "The run goes on" in capsys.readouterr().out
    log.close()
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == list(range(1, 26 if policy == "continue" else len(steps) + 1))
    assert points(tmp_path / "tensorboard")["train/loss"] == set(steps)


def test_lines_that_wait_are_written_at_the_end_or_are_an_error(tmp_path):
    log = RunLog(tmp_path, 0, 30, _config("continue").training)
    log.training(1, {"loss": 1.0})
    _limit((tmp_path / "metrics.jsonl").stat().st_size)
    log.training(2, {"loss": 2.0})
    with pytest.raises(WorkdirError, match=r"metrics\.jsonl cannot be written \(File too large\)"):
        log.finish()
    _limit()
    log.finish()
    log.close()
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_best_json_follows_the_policy(tmp_path, capsys):
    """As on a disk that is full in a validation."""
    for policy in ("stop", "continue"):
        saver = StateSaver(None, None, policy, print)
        _limit(0)
        with pytest.raises(WorkdirError) if policy == "stop" else contextlib.nullcontext(), saver.tolerant():
            replace_text(tmp_path / "best.json", "text")
        _limit()
    assert "best.json cannot be written (File too large)" in capsys.readouterr().out


def test_a_file_of_the_workdir_keeps_its_content(tmp_path):
    path = tmp_path / "best.json"
    replace_text(path, "first")
    _limit(100)
    with pytest.raises(WorkdirError, match=r"best\.json cannot be written \(File too large\)"):
        replace_text(path, "x" * 1000)
    _limit()
    assert path.read_text() == "first"
    assert [file.name for file in tmp_path.iterdir()] == ["best.json"]
