"""Presets: named configurations that come with the package."""

import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

from detr_jax import presets
from detr_jax.cli.configuration import read_config
from detr_jax.config import check_fields
from tests.cli.command import run

ROOT = Path(__file__).parent.parent


def test_every_module_of_the_presets_and_every_file_of_configs_is_listed():
    modules = {module.name for module in pkgutil.iter_modules(presets.__path__)}
    files = {file.stem for file in (ROOT / "configs").glob("*.py")} - {"__init__"}
    assert modules == files == set(presets.PRESETS)


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_and_its_file_in_configs_are_the_same_configuration(name):
    config = presets.get_config(name)
    check_fields(config)
    assert importlib.import_module(f"detr_jax.presets.{name}").get_config() == config
    assert read_config(name, []) == config
    assert read_config(ROOT / "configs" / f"{name}.py", []) == config


def test_every_call_returns_a_new_configuration():
    presets.get_config("shapes").training.batch_size = 1
    assert presets.get_config("shapes").training.batch_size != 1


def test_flags_change_fields_of_a_preset():
    assert read_config("coco", ["--config.training.batch_size=16"]).training.batch_size == 16


def test_the_help_lists_the_presets():
    text = run("train", "--help").output
    width = max(map(len, presets.PRESETS))
    for name, description in presets.PRESETS.items():
        assert f"{name:<{width}}  {description}" in text


@pytest.mark.parametrize("command", ["train", "buckets", "check-data"])
def test_an_unknown_name_is_refused_with_the_known_ones(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(command, "--config", "cocoo")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    for name in presets.PRESETS:
        assert name in result.stderr
    assert "did you mean coco?" in result.stderr
    with pytest.raises(KeyError, match="shapes, small, finetune, coco"):
        presets.get_config("cocoo")


def test_a_preset_takes_precedence_over_a_folder_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "shapes").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_config("shapes", []) == presets.get_config("shapes")


def test_text_after_a_colon_is_the_argument_of_a_file(tmp_path, request):
    file = tmp_path / "sized_configuration.py"
    file.write_text(
        "from detr_jax.config import Config, TrainingConfig\n\n\n"
        "def get_config(size='4'):\n    return Config(training=TrainingConfig(batch_size=int(size)))\n"
    )
    request.addfinalizer(lambda: sys.modules.pop(file.stem, None))
    request.addfinalizer(lambda: sys.path.remove(str(tmp_path)))
    assert read_config(f"{file}:12", []).training.batch_size == 12
    assert read_config(file, []).training.batch_size == 4
