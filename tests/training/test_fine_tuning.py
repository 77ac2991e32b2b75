"""Fine-tuning: the model of a checkpoint on the classes of the data, the best checkpoint, early stopping."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from configs import finetune
from detr_jax.checkpoints import Checkpoints, find_checkpoint, load_config, load_model
from detr_jax.config import BackboneConfig, Config, ConfigError, EvaluationConfig, ModelConfig, ShapesConfig, to_json
from detr_jax.data.shapes import ShapesDataset, write_coco
from detr_jax.evaluation.validator import Validator
from detr_jax.models import DETR
from detr_jax.testing import tiny_config
from detr_jax.training import loop
from detr_jax.training.best_checkpoint import BestCheckpoint
from detr_jax.training.initial_weights import load_initial_weights, read_initial_weights
from detr_jax.training.resolve import resolve_from_data, resolve_model
from detr_jax.training.state import create_model
from detr_jax.workdir import read_metrics

KINDS = ("cross", "ring")


@pytest.fixture
def train(one_device):
    """`detr_jax.train` on one device."""
    return functools.partial(loop.train, mesh=one_device)


@pytest.fixture
def pretrained(tmp_path, rngs):
    """A workdir with a model for three classes, and the tree of its parameters."""
    config = tiny_config()
    values = nnx.as_pure(nnx.state(DETR(config.model, rngs=rngs)))
    checkpoints = Checkpoints(tmp_path / "pretrained" / "checkpoints", keep=1)
    checkpoints.save(7, {"params": values}, config)
    checkpoints.close()
    return tmp_path / "pretrained", values


def _fine_tuning(init_from, **training):
    """configs/finetune.py on drawn shapes of two kinds, with small images and hardly any learning."""
    config, tiny = finetune.get_config(), tiny_config()
    config.data = dataclasses.replace(
        tiny.data,
        sources={"shapes": ShapesConfig(kinds=KINDS, train_images=8, val_images=4, min_size=24, max_size=32)},
    )
    config.loss = tiny.loss
    config.optimizer.learning_rate = config.optimizer.backbone_learning_rate = 1e-12
    config.training = dataclasses.replace(config.training, init_from=str(init_from), **{"epochs": 3, **training})
    config.evaluation = EvaluationConfig(every_epochs=1, batch_size=4, pictures=0)
    return config


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the APs of the validations of a run by a list."""

    def script(*values):
        left = iter(values)
        monkeypatch.setattr(Validator, "evaluate", lambda self, found: {"AP": next(left), "AP50": 0.0})

    return script


def test_fine_tuning_needs_only_a_checkpoint_and_data(train, pretrained, tmp_path, capsys):
    workdir, values = pretrained
    train(_fine_tuning(workdir, epochs=1), tmp_path / "run")
    model, config = load_model(tmp_path / "run")
    there = tiny_config().model
    assert config.model == dataclasses.replace(there, num_classes=2)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["num_classes"] == 2
    found = nnx.as_pure(nnx.state(model))
    assert found["class_head"]["kernel"].shape == (16, 3)
    del found["class_head"], values["class_head"]
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(values), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    printed = capsys.readouterr().out
    assert "model.num_classes=2" in printed
    assert "num_classes is 3 in the checkpoint and 2 here" in printed
    assert "Training from scratch" not in printed


def test_a_resumed_run_needs_neither_init_from_nor_num_classes(train, pretrained, tmp_path, capsys):
    config = _fine_tuning(pretrained[0], epochs=1)
    train(config, tmp_path / "run")
    (pretrained[0] / "checkpoints").rename(tmp_path / "away")
    config.training.epochs = 2
    train(config, tmp_path / "run")
    assert "resuming at step 1" in capsys.readouterr().out
    assert find_checkpoint(tmp_path / "run").name == "2"


def test_the_best_checkpoint_is_kept_and_found_by_name(train, pretrained, tmp_path, scripted, capsys):
    scripted(0.1, 0.3, 0.2, 0.3)
    run = tmp_path / "run"
    train(_fine_tuning(pretrained[0], epochs=4), run)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4"]
    assert find_checkpoint(run).name == "4"
    assert find_checkpoint(run / "best") == (run / "checkpoints" / "2").absolute()
    assert load_config(run / "best").model.num_classes == 2
    assert json.loads((run / "best.json").read_text()) == {"step": 2, "AP": 0.3, "last": 4, "since": 2}
    assert "best AP 0.300 at step 2" in capsys.readouterr().out


def test_a_run_that_stopped_early_continues_only_with_a_larger_limit(train, pretrained, tmp_path, scripted, capsys):
    scripted(0.2, 0.1, 0.1, 0.4, 0.3, 0.3)
    config = _fine_tuning(pretrained[0], epochs=9, early_stop=2)
    assert train(config, tmp_path / "run")["AP"] == 0.1
    assert "stopping at step 3: 2 validations without a better AP" in capsys.readouterr().out
    assert train(config, tmp_path / "run")["AP"] == 0.1
    assert find_checkpoint(tmp_path / "run").name == "3"
    config.training.early_stop = 3
    train(dataclasses.replace(config, training=dataclasses.replace(config.training, epochs=6)), tmp_path / "run")
    assert find_checkpoint(tmp_path / "run").name == "6"
    assert find_checkpoint(tmp_path / "run" / "best").name == "4"


@pytest.mark.parametrize("seed", range(3))
def test_the_best_checkpoint_equals_a_brute_force_search_however_often_a_run_is_resumed(rng, tmp_path, seed):
    aps = rng.integers(0, 5, 12) / 4
    aps[rng.random(12) < 0.3] = np.nan  # validations without objects
    checkpoints = type("Kept", (), {"folder": tmp_path / "checkpoints", "wait": lambda self: None})()
    best = BestCheckpoint(tmp_path, checkpoints, 0, metric="AP", reset=False)
    for step, ap in enumerate(aps, start=1):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
        best.add(step, None if np.isnan(ap) else float(ap))
        if rng.random() < 0.5:
            best = BestCheckpoint(tmp_path, checkpoints, step, metric="AP", reset=False)
            best.add(step, None if np.isnan(ap) else float(ap))  # a resumed run adds its last validation again
        if np.isnan(aps[:step]).all():
            assert (checkpoints.best_step, best.validations_since) == (None, 0)
            assert not list(tmp_path.glob("best*"))
            continue
        assert checkpoints.best_step == 1 + int(np.nanargmax(aps[:step]))
        assert best.validations_since == np.isfinite(aps[checkpoints.best_step : step]).sum()
        assert (tmp_path / "best").resolve() == (tmp_path / "checkpoints" / str(checkpoints.best_step)).resolve()
    assert BestCheckpoint(tmp_path, checkpoints, 12, metric="AP", reset=True).validations_since == 0
    assert checkpoints.best_step is None


def test_a_validation_without_objects_removes_the_best_checkpoint_of_earlier_data_or_an_earlier_version(tmp_path):
    checkpoints = type("Kept", (), {"folder": tmp_path / "checkpoints", "wait": lambda self: None})()
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    for ap, reset in ((-1.0, False), (0.5, True)):
        (tmp_path / "best.json").write_text(json.dumps({"step": 2, "AP": ap, "last": 3, "since": 9}))
        (tmp_path / "best").symlink_to("checkpoints/2")
        best = BestCheckpoint(tmp_path, checkpoints, 3, metric="AP", reset=reset)
        best.add(4, None)
        assert (checkpoints.best_step, best.validations_since) == (None, 0)
        assert not list(tmp_path.glob("best*"))
        assert "no checkpoint is the best" in best.sentence()


def test_few_images_and_validations_without_objects_cause_warnings_and_no_best(train, tmp_path, capsys, rng):
    write_coco(ShapesConfig(train_images=8, val_images=2, min_size=24, max_size=32), tmp_path / "data")
    file = tmp_path / "data" / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    crowds = [{**annotation, "iscrowd": 1} for annotation in content["annotations"]]
    file.write_text(json.dumps({**content, "annotations": crowds if rng.random() < 0.5 else []}))
    config = tiny_config()
    config.data.dataset, config.data.root = "coco", str(tmp_path / "data")
    config.training.steps, config.training.early_stop = 3, 1
    config.data.allow_empty = True
    config.evaluation.pictures = config.evaluation.snapshots = 0
    metrics = train(config, tmp_path / "run")
    assert set(metrics.values()) == {None}
    printed = capsys.readouterr().out
    assert "Training from scratch on 8 images" in printed
    assert printed.count("The validation images have no objects") == 1
    assert "validation at step 3: AP none" in printed
    assert "stopping" not in printed
    assert not list((tmp_path / "run").glob("best*"))
    lines = read_metrics(tmp_path / "run")
    validations = [line for line in lines if "val/AP" in line]
    assert [line.pop("step") for line in validations] == [1, 2, 3]
    assert all(value is None for line in validations for value in line.values())


def test_fine_tuning_without_a_checkpoint_is_refused(train, tmp_path):
    with pytest.raises(ConfigError, match=r"^training\.init_from is empty: give the checkpoint"):
        train(_fine_tuning(""), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_model_follows_the_checkpoint_except_for_the_fields_of_the_run(pretrained):
    config = _fine_tuning(pretrained[0])
    config.model = ModelConfig(num_classes=0, num_queries=0, dropout=0.25, dtype="bfloat16", hidden_dim=512)
    resolved, weights = resolve_model(config, None)
    there = tiny_config().model
    assert resolved.model == dataclasses.replace(there, num_classes=0, dropout=0.25, dtype="bfloat16")
    assert weights is not None
    config.model.num_queries, config.model.num_classes = 50, 6
    resolved, _ = resolve_model(config, None)
    assert (resolved.model.num_queries, resolved.model.num_classes) == (50, 6)
    previous = Config(model=ModelConfig(num_classes=4, num_queries=9, backbone=BackboneConfig(width=32)))
    config.model.num_queries = config.model.num_classes = 0
    resolved, weights = resolve_model(config, previous)
    assert (resolved.model.num_queries, resolved.model.num_classes, resolved.model.backbone.width) == (9, 4, 32)
    assert weights is None


def test_the_classes_of_both_splits_count():
    config = dataclasses.replace(tiny_config(), model=dataclasses.replace(tiny_config().model, num_classes=0))
    sources = [ShapesDataset(ShapesConfig(kinds=kinds), "val") for kinds in (KINDS, ("ring", "cross", "diamond"))]
    assert resolve_from_data(config, None, *sources).model.num_classes == 3
    assert resolve_from_data(tiny_config(), None, *sources).model.num_classes == 3
    assert to_json(resolve_from_data(config, None, sources[0], sources[0])) != to_json(config)


def test_a_class_head_of_the_right_size_for_other_classes_is_reported(pretrained, capsys):
    config = tiny_config()
    config.training.init_from = str(pretrained[0])
    weights = dataclasses.replace(read_initial_weights(config), class_names={0: "circle", 1: "square", 2: "triangle"})
    model = create_model(config)
    _, said = load_initial_weights(model, weights, config, {0: "circle", 1: "ring", 2: "triangle"})
    assert said.endswith("was trained for other classes, and starts from them: 1 square -> ring.")
    _, said = load_initial_weights(model, weights, config, weights.class_names)
    assert "other classes" not in said
