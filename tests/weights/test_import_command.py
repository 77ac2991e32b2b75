"""``detr-jax import-weights`` and ``training.init_from``."""

import json

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from safetensors.numpy import save_file

from detr_jax.checkpoints import load_class_names, load_model
from detr_jax.cli import main
from detr_jax.testing import tiny_config
from detr_jax.training.loop import train
from detr_jax.weights import WeightsError, load_pretrained
from detr_jax.weights.trees import by_path
from tests.weights import framework_states as states


@pytest.fixture
def source(bottleneck, tmp_path):
    """A detector of mmdetection's layout as a file."""
    path = tmp_path / "model.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in states.mmdetection(bottleneck.weights).items()}, path)
    return path


def _values(model):
    return {path: np.asarray(x) for path, x in by_path(nnx.as_pure(nnx.state(model))).items()}


def test_an_imported_detector_is_a_checkpoint_with_its_class_table(source, tmp_path):
    result = CliRunner().invoke(main, ["import-weights", str(source), str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "classes: 1 person, 2 bicycle" in result.output
    names = load_class_names(tmp_path / "out")
    assert (names[1], names[90], len(names)) == ("person", "toothbrush", 80)
    assert "91 classes" in result.output
    model, config = load_model(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model"]["num_classes"] == 91
    assert config.model.num_classes == 91
    imported = _values(load_pretrained(source))
    for path, value in _values(model).items():
        np.testing.assert_array_equal(value, imported[path], err_msg=path)


@pytest.mark.parametrize("fault", ["missing source", "text file", "existing out"])
def test_a_failed_import_raises_an_error_and_leaves_no_files(source, tmp_path, fault):
    out = tmp_path / "out"
    if fault == "missing source":
        source.unlink()
    elif fault == "text file":
        source.write_text("hello")
    else:
        out.mkdir()
        (out / "mine").write_text("")
    result = CliRunner().invoke(main, ["import-weights", str(source), str(out)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert str(out if fault == "existing out" else source) in result.output
    assert not (out / "checkpoints").exists()


def _train_config(source, model):
    config = tiny_config()
    config.model = model
    config.model.num_classes = 3
    config.training.init_from = str(source)
    config.training.steps = 1
    config.training.ema_decay = 0.0
    config.optimizer.learning_rate = config.optimizer.backbone_learning_rate = 1e-12
    return config


def test_training_starts_from_a_foreign_checkpoint_with_a_new_class_head(source, tmp_path, one_device, capsys):
    imported = load_pretrained(source)
    CliRunner().invoke(main, ["import-weights", str(source), str(tmp_path / "own")])
    model_config = load_model(tmp_path / "own")[1].model
    config = _train_config(source, model_config)
    config.data.train_buckets = config.data.val_buckets = ((32, 32),)
    with jax.numpy_dtype_promotion("standard"):
        train(config, tmp_path / "run", mesh=one_device)
    printed = capsys.readouterr().out
    assert "re-initialised" in printed
    assert "num_classes is 91 in the checkpoint and 3 here" in printed
    start = _values(imported)
    for path, value in _values(load_model(tmp_path / "run")[0]).items():
        if path.startswith("class_head/"):
            assert value.shape[-1] == 4
        else:
            np.testing.assert_allclose(value, start[path], atol=1e-6, err_msg=path)

    config.model.hidden_dim *= 2
    with pytest.raises(WeightsError, match=r"model\.hidden_dim"):
        train(config, tmp_path / "other", mesh=one_device)
