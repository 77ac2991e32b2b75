"""Configurations from files and flags: classes that a file defines, earlier names, choices."""

import dataclasses
import pickle
import re
import sys

import click
import pytest

from detr_jax.cli.configuration import check_fields_named, read_config
from detr_jax.config import ColorJitter, Config, ConfigError, Schedule, YoloRows, from_json, to_json
from tests.cli.command import run

MINE = """
import dataclasses

import numpy as np

from detr_jax.config import Config, DataConfig, SourceConfig, ModelConfig
from detr_jax.data import ShapesDataset
from detr_jax.config import ShapesConfig


@dataclasses.dataclass(kw_only=True)
class Drawn(SourceConfig):
    seed: int = 7
    number: int = 5

    def open(self, split, data):
        return ShapesDataset(ShapesConfig(train_images=self.number, val_images=3, seed=self.seed), split)


def get_config():
    return Config(model=ModelConfig(num_classes=3), data=DataConfig(dataset="drawn", sources={"drawn": Drawn()}))
"""


@pytest.fixture
def mine(tmp_path):
    """A configuration file with a data set of its own, under a name that nothing else has."""
    path = tmp_path / f"mine_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(MINE)
    yield path
    sys.modules.pop(path.stem, None)
    sys.path.remove(str(tmp_path)) if str(tmp_path) in sys.path else None


def test_a_class_of_a_configuration_file_is_used_named_and_read_again(mine):
    config = read_config(mine, ["--config.data.sources.drawn.number=4"])
    assert (config.data.sources["drawn"].number, config.data.sources["drawn"].seed) == (4, 7)
    assert f'"kind": "{mine.stem}:Drawn"' in to_json(config)
    assert from_json(to_json(config)) == config
    assert pickle.loads(pickle.dumps(config)) == config, "as it goes to worker processes"
    text = to_json(config)
    del sys.modules[mine.stem]
    with pytest.raises(ConfigError, match=f"import {mine.stem}"):
        from_json(text)


def test_a_file_is_run_before_a_command_that_needs_its_classes(mine, tmp_path):
    text = to_json(read_config(mine, []))
    del sys.modules[mine.stem]
    assert run("--import", mine, "make-shapes", "--help").exit_code == 0
    assert from_json(text).data.dataset == "drawn"
    broken = tmp_path / "broken.py"
    broken.write_text("import dataclasses\n1 / 0")
    result = run("--import", broken, "plot", "--help")
    assert f"{broken}, line 2 cannot be run: ZeroDivisionError" in result.output


def test_a_data_set_of_a_configuration_file_is_checked(mine):
    result = run("check-data", "--config", mine, "--config.data.sources.drawn.number=4", "--split", "train")
    assert result.exit_code == 0, result.output
    assert "4 images" in result.output
    result = run("check-data", "--config", mine, "--config.data.sources.drawn.numbr=4")
    assert "did you mean data.sources.drawn.number?" in result.output


def test_a_configuration_file_may_have_the_name_of_an_imported_module(tmp_path):
    path = tmp_path / "json.py"
    path.write_text(MINE)
    before = sys.modules["json"]
    assert read_config(path, []).data.dataset == "drawn"
    assert sys.modules["json"] is before


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("data.yolo_rows", "data.sources.yolo.rows", "polygon"),
        ("data.tfds_name", "data.sources.tfds.name", "voc/2007"),
        ("data.shapes.seed", "data.sources.shapes.seed", "5"),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_an_earlier_name_of_a_field_is_accepted_with_a_warning(old, new, value, joined, capsys):
    config = read_config(None, [f"--config.{old}={value}"] if joined else [f"--config.{old}", value])
    _, _, name, field = new.split(".")
    assert str(getattr(config.data.sources[name], field)) == value
    assert capsys.readouterr().err == f"Warning: --config.{old} is called --config.{new} now.\n"


def test_an_earlier_name_counts_as_the_field_that_it_is_now():
    with pytest.raises(click.ClickException, match="cannot be changed: of them"):
        check_fields_named(["--config.data.yolo_rows=box"], ["data.root", "data.sources.coco."], "of them none.")
    check_fields_named(["--config.data.yolo_rows=box"], ["data.sources.yolo."], "of them none.")


def test_choices_are_read_from_flags_and_others_are_refused_with_the_choices():
    config = read_config(None, ["--config.optimizer.schedule=cosine", "--config.data.sources.yolo.rows", "box"])
    assert config.optimizer.schedule is Schedule.COSINE
    assert config.data.sources["yolo"].rows is YoloRows.BOX
    with pytest.raises(click.ClickException) as error:
        read_config(None, ["--config.optimizer.schedule=linear"])
    assert error.value.message == (
        "optimizer.schedule='linear' is not known: it must be one of 'step', 'cosine', 'constant'."
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("loss.terms.giou=3", " is a section: set one of its fields, such as --config.loss.terms.giou.weight=VALUE."),
        ("data.sources=x", " is a section: set one of its fields, such as --config.data.sources.shapes.seed=VALUE."),
        ("evaluation.metrics.bbox=x", " is a section: change it in a configuration file."),
        ("data.augmentation.photometric=x", "='x' must be of class Photometric or None."),
        ("training.epochs=many", "='many' must be a whole number or None."),
        ("optimizer.learning_rate=fast", "='fast' must be a number."),
        ("data.flip=perhaps", "='perhaps' must be true or false."),
    ],
)
def test_a_wrong_value_is_refused_in_words(change, sentence):
    with pytest.raises(click.ClickException) as error:
        read_config(None, [f"--config.{change}"])
    assert error.value.message == change.partition("=")[0] + sentence


def test_every_section_says_which_field_of_it_can_be_set():
    """Whatever field the sentence names is not a section itself."""
    for path in ("model", "data", "loss", "optimizer", "training", "evaluation", "loss.costs", "model.backbone"):
        with pytest.raises(click.ClickException) as error:
            read_config(None, [f"--config.{path}=x"])
        if named := re.search(r"--config\.([\w.]+)=VALUE", error.value.message):
            node = Config()
            for name in named[1].split("."):
                node = node[name] if isinstance(node, dict) else getattr(node, name)
            assert not dataclasses.is_dataclass(node), path
            assert not isinstance(node, dict), path


def test_a_section_that_can_be_none_is_set_to_none():
    config = Config()
    config.data.augmentation.photometric = ColorJitter(hue=0.1)
    changed = read_config(None, ["--config.data.augmentation.photometric=None"], base=config)
    assert changed.data.augmentation.photometric is None
    assert read_config(None, []) == Config()
