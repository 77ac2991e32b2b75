"""Faults of a run: damaged checkpoints, lost files, a second training, and numbers that are not finite."""

import functools
import json
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.checkpoints import CheckpointError, DamagedCheckpointError, checkpoints_of, load_model
from detr_jax.config import ConfigError
from detr_jax.testing import tiny_config
from detr_jax.training import checkpointing, loop
from detr_jax.training.best_checkpoint import BestCheckpoint
from detr_jax.training.error import TrainingError
from detr_jax.training.finiteness import check_state
from detr_jax.training.state import TrainState
from detr_jax.workdir import locked, read_metrics, replace_text


@pytest.fixture(scope="module")
def train(one_device):
    return functools.partial(loop.train, mesh=one_device)


def _config(steps=10):
    config = tiny_config()
    config.training.steps, config.training.checkpoint_every, config.training.log_every = steps, 4, 2
    config.evaluation.pictures = config.evaluation.snapshots = 0
    return config


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """A run of 10 steps with checkpoints 6, 8 and 10."""
    workdir = tmp_path_factory.mktemp("faults") / "run"
    train(_config(), workdir)
    return workdir


def _copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


def _damage(checkpoint):
    largest = max((checkpoint / "params").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)


def _arrays(workdir):
    import jax
    from orbax.checkpoint import v1 as ocp

    trees = ocp.load_checkpointables(checkpoints_of(workdir)[0], {"params": None, "ema": None, "optimizer": None})
    return [np.asarray(x) for x in jax.tree.leaves(trees)]


def test_a_run_resumes_from_the_newest_sound_checkpoint_and_ends_with_the_same_bits(train, finished, tmp_path, capsys):
    workdir = _copy(finished, tmp_path)
    newest, before = (path.name for path in checkpoints_of(workdir)[:2])
    _damage(workdir / "checkpoints" / newest)
    train(_config(), workdir)
    printed = capsys.readouterr().out
    assert f"checkpoints/{newest} is damaged" in printed
    assert f"resuming at step {before}" in printed
    assert (workdir / "damaged" / newest).is_dir(), "nothing is lost"
    for ours, expected in zip(_arrays(workdir), _arrays(finished), strict=True):
        np.testing.assert_array_equal(ours, expected)
    assert [line["step"] for line in read_metrics(workdir)] == [line["step"] for line in read_metrics(finished)]


def test_with_strict_a_damaged_checkpoint_ends_the_run(train, finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    newest = checkpoints_of(workdir)[0]
    _damage(newest)
    with pytest.raises(DamagedCheckpointError, match=rf"{newest.name} is damaged: params/"):
        train(_config(), workdir, strict=True)
    assert newest.is_dir()


def test_a_checkpoint_without_parameters_does_not_stop_the_run(train, finished, tmp_path, capsys):
    workdir = _copy(finished, tmp_path)
    newest = checkpoints_of(workdir)[0]
    shutil.rmtree(newest / "params")
    with pytest.raises(DamagedCheckpointError, match=rf"{newest.name} is damaged: its 'params' are missing"):
        train(_config(), workdir, strict=True)
    train(_config(), workdir)
    assert f"{newest} is damaged: its 'params' are missing" in capsys.readouterr().out
    assert checkpoints_of(workdir)[0] == newest


@pytest.mark.parametrize("damage", [_damage, lambda checkpoint: shutil.rmtree(checkpoint / "params")])
def test_if_no_checkpoint_is_sound_the_run_never_begins_again(train, finished, tmp_path, damage):
    workdir = _copy(finished, tmp_path)
    found = sorted(path.name for path in (workdir / "checkpoints").iterdir())
    lines = (workdir / "metrics.jsonl").read_bytes()
    for name in found:
        damage(workdir / "checkpoints" / name)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="is sound"):
            train(_config(), workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == found
    assert (workdir / "metrics.jsonl").read_bytes() == lines


def test_a_prediction_reads_the_checkpoint_before_a_damaged_one(finished, tmp_path, caplog):
    workdir = _copy(finished, tmp_path)
    newest, before = checkpoints_of(workdir)[:2]
    for part in ("params", "ema"):
        for file in (newest / part).rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[:-1])
    load_model(workdir)
    assert f"{newest} is damaged" in caplog.text
    assert f"{before} is used instead" in caplog.text
    with pytest.raises(DamagedCheckpointError):
        load_model(newest)


def test_another_optimizer_is_no_damage(train, finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    config = _config()
    config.optimizer.slow_parameters = ("box_head",)
    with pytest.raises(CheckpointError, match="does not fit this configuration"):
        train(config, workdir)
    assert not (workdir / "damaged").exists()


def test_the_history_is_not_lost_with_the_newest_checkpoint(train, finished, tmp_path):
    """The best validation stays known and its checkpoint protected."""
    workdir = _copy(finished, tmp_path)
    best = json.loads((workdir / "best.json").read_text())
    newest, before = checkpoints_of(workdir)[:2]
    record = {**best, "step": int(before.name), "last": int(newest.name)}
    (workdir / "best.json").write_text(json.dumps(record))
    shutil.rmtree(newest)

    class Folder:
        folder = workdir / "checkpoints"
        best_step = None

        def wait(self):
            pass

    kept = Folder()
    found = BestCheckpoint(workdir, kept, int(before.name), metric="AP", reset=False)
    assert kept.best_step == int(before.name)
    assert f"at step {before.name}" in found.sentence()
    assert (workdir / "best").resolve() == before.resolve(), "the link leads to it again"


def test_a_start_changes_no_line_of_the_log(train, finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    metrics = workdir / "metrics.jsonl"
    content, changed = metrics.read_bytes(), metrics.stat().st_mtime_ns
    train(_config(), workdir)
    assert metrics.read_bytes() == content
    assert metrics.stat().st_mtime_ns == changed


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    replace_text(path, "first")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("the disk is full")))
    with pytest.raises(OSError, match="full"):
        replace_text(path, "second")
    assert path.read_text() == "first"
    monkeypatch.undo()
    replace_text(path, "third")
    assert path.read_text() == "third"
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]


def test_a_second_training_in_a_workdir_is_refused(train, finished, tmp_path):
    workdir = _copy(finished, tmp_path)
    with locked(workdir), pytest.raises(ConfigError, match=rf"is used by another training \(process {os.getpid()} on "):
        train(_config(), workdir)
    train(_config(), workdir)  # a lock that was left behind is none


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from detr_jax.workdir import locked\n"
        "with locked(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert "process" in (tmp_path / "lock").read_text()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_a_broken_state_never_becomes_a_checkpoint(train, tmp_path):
    """The loss of the last step before a checkpoint is finite, and its update is not."""
    config = _config(steps=1)
    config.optimizer.learning_rate, config.optimizer.warmup_steps, config.optimizer.clip_norm = 1e39, 0, 0.0
    config.training.checkpoint_every = 1
    with pytest.raises(TrainingError, match=r"After step 1 the parameters .*not finite.*They were not saved"):
        train(config, tmp_path)
    assert not checkpoints_of(tmp_path)


def test_a_loss_that_is_not_finite_names_step_terms_and_images(train, tmp_path):
    config = _config(steps=30)
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 1e30, 0
    config.training.log_every = config.training.checkpoint_every = 50
    config.evaluation.every_epochs = 0
    with pytest.raises(
        TrainingError, match=r"is (nan|inf) at step \d+ \(also .*loss_giou.*\), for the images \d+, \d+"
    ):
        train(config, tmp_path)


@pytest.mark.parametrize("part", ["params", "opt_state", "ema"])
def test_every_part_of_the_state_must_be_finite(part):
    good = {"x": jnp.ones(3), "count": jnp.array(2)}
    parts = {"params": good, "opt_state": good, "ema": good}
    check_state(TrainState(jnp.array(5), **parts))
    check_state(TrainState(jnp.array(5), **{**parts, "ema": None}))
    bad = {"x": jnp.array([1.0, jnp.nan, 2.0]), "count": jnp.array(2)}
    with pytest.raises(TrainingError, match="After step 5 the"):
        check_state(TrainState(jnp.array(5), **{**parts, part: bad}))


def test_checkpoints_are_read_only_once_for_a_resume(train, finished, tmp_path, monkeypatch):
    workdir = _copy(finished, tmp_path)
    calls = []
    restore = checkpointing.restore
    monkeypatch.setattr(checkpointing, "restore", lambda *args: calls.append(int(args[0].name)) or restore(*args))
    train(_config(), workdir)
    assert calls == [10]
