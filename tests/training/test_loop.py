"""Runs from their first step to their end: files, metrics, stops, resumes and errors."""

import contextlib
import functools
import io
import json
import multiprocessing
import signal

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from PIL import Image

import detr_jax
from detr_jax import checkpoints
from detr_jax.config import ConfigError
from detr_jax.data import DataError
from detr_jax.evaluation import validator
from detr_jax.evaluation.validator import Validator
from detr_jax.testing import tiny_config
from detr_jax.training import checkpointing, loop, process_checks
from detr_jax.training.compiled_step import CompiledStep
from detr_jax.training.error import TrainingError
from detr_jax.training.run_log import RunLog
from detr_jax.training.signals import Interrupted
from detr_jax.workdir import read_metrics


@pytest.fixture(scope="module")
def train(one_device):
    """`detr_jax.train` on one device."""
    return functools.partial(loop.train, mesh=one_device)


@pytest.fixture(scope="module")
def finished(train, tmp_path_factory):
    """The workdir and the metrics of a complete run. Its output and its logged numbers lie next to the workdir."""
    workdir, printed, logged = tmp_path_factory.mktemp("run"), io.StringIO(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validator, "sameness", lambda found, *_: f"All the same in {len(found.image_ids)} images.")
        with contextlib.redirect_stdout(printed):
            metrics = train(tiny_config(), workdir, on_log=lambda *line: logged.append(line))
    workdir.with_suffix(".json").write_text(json.dumps(logged))
    workdir.with_suffix(".txt").write_text(printed.getvalue())
    return workdir, metrics


def _newest_arrays(workdir):
    """All arrays of the newest checkpoint by path."""
    folder = checkpoints.find_checkpoint(workdir)
    trees = ocp.load_checkpointables(folder, {"params": None, "ema": None, "optimizer": None})
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(trees)}


def test_a_run_writes_metrics_checkpoints_config_and_a_picture(finished):
    workdir, metrics = finished
    lines = read_metrics(workdir)
    training = [line for line in lines if "train/loss" in line]
    validation = [line for line in lines if "val/AP" in line]
    assert [line["step"] for line in training] == [4, 5, 6, 8, 10, 12]
    assert [line["step"] for line in validation] == [6, 12]
    assert {"val/AP", "val/AP50", "val/AP75", "val/APs", "val/APm", "val/APl", "val/AR1", "val/AP/circle"} <= set(
        validation[-1]
    )
    assert validation[-1]["val/AP"] == metrics["AP"]
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == [6, 10, 12]
    assert json.loads((workdir / "config.json").read_text())["training"]["steps"] == 12
    assert list((workdir / "tensorboard").iterdir())
    with Image.open(workdir / "predictions.png") as picture:
        assert min(picture.size) > 300


def test_that_all_queries_predict_the_same_is_reported_only_after_the_first_validation(finished):
    lines = finished[0].with_suffix(".txt").read_text().splitlines()
    reported = [i for i, line in enumerate(lines) if line == "All the same in 10 images."]
    assert len(reported) == 1
    assert "validation at step 6" in lines[reported[0] - 1]


def test_the_same_command_again_trains_nothing_more_and_initializes_nothing(train, finished, monkeypatch, capsys):
    workdir, metrics = finished
    monkeypatch.setattr(checkpointing, "initialize_missing", None)
    before = (workdir / "metrics.jsonl").read_text()
    assert train(tiny_config(), workdir) == metrics
    assert (workdir / "metrics.jsonl").read_text() == before
    assert "resuming at step 12" in capsys.readouterr().out


def test_a_run_stopped_by_a_signal_and_resumed_ends_with_the_same_bits(train, finished, tmp_path, monkeypatch):
    write = RunLog.training

    def write_and_stop(self, step, terms):
        write(self, step, terms)
        if step == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "training", write_and_stop)
        with pytest.raises(Interrupted, match="step 4"):
            train(tiny_config(), tmp_path)
    assert train(tiny_config(), tmp_path) == finished[1]
    ours, reference = _newest_arrays(tmp_path), _newest_arrays(finished[0])
    assert ours.keys() == reference.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], reference[name], err_msg=name)


def test_a_run_ended_by_its_callback_between_checkpoints_repeats_the_lost_steps(train, finished, tmp_path):
    def fail(step, numbers):
        if step == 8:
            raise MemoryError("out_of_memory in the callback")

    with pytest.raises(MemoryError, match="in the callback"):
        train(tiny_config(), tmp_path, on_log=fail)
    (tmp_path / "metrics.jsonl").open("a").write('{"step": 8, "tr')  # a line cut off by the crash
    train(tiny_config(), tmp_path)
    own, reference = read_metrics(tmp_path), read_metrics(finished[0])
    assert [line["step"] for line in own] == [line["step"] for line in reference]
    for a, b in zip(own, reference, strict=True):
        times = {"train/images_per_s", "train/compile_seconds"}
        assert {k: v for k, v in a.items() if k not in times} == {k: v for k, v in b.items() if k not in times}


def test_a_step_that_does_not_fit_into_memory_ends_the_run_with_advice(train, tmp_path, monkeypatch):
    def fail(self, state, batch):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte.")

    monkeypatch.setattr(CompiledStep, "__call__", fail)
    with pytest.raises(TrainingError, match=r"Step 1 does not fit.*training\.batch_size.*detr-jax buckets"):
        train(tiny_config(), tmp_path)


def test_processes_that_found_other_data_are_refused(train, tmp_path, monkeypatch):
    def of_two(values):
        """The values of two processes with the same configuration and different images."""
        own.append(values)
        return np.array([values, values + (len(own) > 1)])

    own = []
    monkeypatch.setattr(process_checks, "gathered", of_two)
    with pytest.raises(DataError, match="Process 1 found other images than process 0"):
        train(tiny_config(), tmp_path)


def test_a_killed_worker_process_ends_the_run_with_an_error_and_a_checkpoint(train, tmp_path, monkeypatch):
    write = RunLog.training

    def write_and_kill(self, step, terms):
        write(self, step, terms)
        for worker in multiprocessing.active_children():
            worker.kill()

    config = tiny_config()
    config.data.num_workers = 1
    config.training.steps, config.training.checkpoint_every, config.evaluation.every_epochs = 1000, 1000, 0
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "training", write_and_kill)
        with pytest.raises(TrainingError, match=r"process that loads data ended.*data\.num_workers=1.*resumes from"):
            train(config, tmp_path)
    last = read_metrics(tmp_path)[-1]["step"]
    assert 4 <= last < 1000
    assert checkpoints.find_checkpoint(tmp_path).name == str(last)


def test_a_signal_stops_a_validation_at_once_and_a_resumed_run_repeats_it(train, finished, tmp_path, monkeypatch):
    evaluate = Validator.evaluate

    def stop_and_evaluate(self, found):
        signal.raise_signal(signal.SIGINT)
        return evaluate(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(Validator, "evaluate", stop_and_evaluate)
        with pytest.raises(Interrupted, match="step 6") as stopped:
            train(tiny_config(), tmp_path)
    assert stopped.value.signal_number == signal.SIGINT
    assert not [line for line in read_metrics(tmp_path) if "val/AP" in line]
    assert train(tiny_config(), tmp_path) == finished[1]
    assert [line["step"] for line in read_metrics(tmp_path) if "val/AP" in line] == [6, 12]


def test_fewer_steps_than_done_and_a_damaged_config_file_are_refused(train, finished, tmp_path):
    config = tiny_config()
    config.training.steps = 10
    with pytest.raises(ConfigError, match=r"training\.steps=10 is below the 12 steps"):
        train(config, finished[0])
    (tmp_path / "checkpoints" / "3" / "params").mkdir(parents=True)
    (tmp_path / "config.json").write_text('{"model": ')
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        train(tiny_config(), tmp_path)


def test_the_checkpoint_restores_for_inference_with_the_ema(finished):
    model, config = checkpoints.load_model(finished[0])
    plain, _ = checkpoints.load_model(finished[0] / "checkpoints" / "12", ema=False)
    assert config == tiny_config()
    images = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    sizes = np.array([[32, 32]])
    assert model(images, sizes).logits.shape == (2, 1, 5, 4)
    assert not np.allclose(model(images, sizes).logits, plain(images, sizes).logits)


def test_a_changed_model_is_refused_and_a_changed_log_interval_is_reported(train, finished, capsys):
    config = tiny_config()
    config.model.num_queries = 9
    with pytest.raises(ConfigError, match=r"model\.num_queries was 5 .* is 9 now"):
        train(config, finished[0])
    config = tiny_config()
    config.training.log_every = 3
    train(config, finished[0])
    assert "training.log_every from 4 to 3" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(train, tmp_path):
    config = tiny_config()
    config.optimizer.learning_rate = config.optimizer.backbone_learning_rate = 1e30
    config.optimizer.warmup_steps = 0
    config.training.log_every = 50  # the validation after an epoch comes first, and must not meet the NaN
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) at step \d+"):
        train(config, tmp_path)
    assert not any(path.name.isdigit() for path in (tmp_path / "checkpoints").iterdir())


def _changed(path, value):
    config = tiny_config()
    *parents, name = path.split(".")
    node = config
    for parent in parents:
        node = getattr(node, parent)
    setattr(node, name, value)
    return config


@pytest.mark.parametrize(
    ("path", "value", "error", "words"),
    [
        ("training.batch_size", 0, ConfigError, "training.batch_size=0"),
        ("loss.matcher", "hungarian", ConfigError, "loss.matcher='hungarian'"),
        ("optimizer.frozen", ("backbone/layer1",), ConfigError, "'backbone/layer1'"),
        ("optimizer.frozen", ("backbone", "enc"), ConfigError, "'enc'"),
        ("model.num_classes", 2, DataError, "model.num_classes=2"),
        ("data.train_buckets", ((16, 16),), DataError, "data.train_buckets"),
        ("data.val_buckets", ((16, 16),), DataError, "data.val_buckets"),
    ],
)
def test_bad_configurations_end_before_anything_is_written(train, tmp_path, path, value, error, words):
    with pytest.raises(error) as caught:
        train(_changed(path, value), tmp_path / "run")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_devices_cannot_share_is_refused(tmp_path):
    config = tiny_config()
    config.training.batch_size = 6
    with pytest.raises(ConfigError, match=r"training\.batch_size=6 .* 4 devices: use a multiple of 4"):
        detr_jax.train(config, tmp_path / "run")


def test_each_logged_line_goes_to_the_callback_with_its_defined_numbers(finished):
    calls = json.loads(finished[0].with_suffix(".json").read_text())
    lines = [{name: x for name, x in line.items() if x is not None} for line in read_metrics(finished[0])]
    assert [{"step": step, **numbers} for step, numbers in calls] == lines
