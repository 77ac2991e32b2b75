"""What importing the package and calling its command needs."""

import importlib
import importlib.abc
import json
import os
import subprocess
import sys

import pytest

import detr_jax
from detr_jax.cli import main
from tests.cli.command import run

WITHOUT = ("faster_coco_eval", "grain", "ml_collections", "tensorboardX", "tensorflow_datasets", "torch")
HEAVY = (
    *("absl", "faster_coco_eval", "flax", "grain", "jax", "jaxlib", "matplotlib", "ml_collections", "numpy", "optax"),
    *("orbax", "PIL", "safetensors", "scipy", "tensorboardX", "tensorflow_datasets", "tensorstore", "yaml"),
)


def _python(program, *arguments, **environment):
    """The output of a program in a new process."""
    ended = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return ended.stdout


def test_models_weights_and_steps_need_nothing_that_only_data_and_evaluation_use():
    program = """
import sys
sys.modules |= dict.fromkeys(sys.argv[1:])  # importing any of them fails
import detr_jax.inference, detr_jax.losses, detr_jax.matching, detr_jax.models, detr_jax.weights, detr_jax.training.step
"""
    _python(program, *WITHOUT)


CALLS = [
    *(["--help"], ["--version"], ["prdict", "image.jpg"], ["--nonsense"], []),
    *([command, "--help"] for command in ("evaluate", "plot", "predict", "train")),
]


def test_help_and_mistyped_commands_import_nothing_heavy():
    program = """
import json, sys
from detr_jax.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments, prog_name="detr-jax")
    except SystemExit as end:
        assert bool(end.code) == (arguments[-1:] not in (["--help"], ["--version"])), (arguments, end.code)
import detr_jax
assert "Detector" in dir(detr_jax)
print("imported:", *sorted(set(sys.argv[2:]) & set(sys.modules)))
"""
    output = _python(program, json.dumps(CALLS), *HEAVY)
    assert output.splitlines()[-1] == "imported:"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_a_subcommand_is_listed_as_it_calls_itself(name):
    command = main.commands[name].load()
    assert command.name == name
    assert command.get_short_help_str(200) == main.commands[name].get_short_help_str(200)


def test_public_names_are_there_when_they_are_used():
    modules = {
        "Detector": "inference",
        "ImageAttention": "results",
        "ImageSampling": "results",
        "ImageDetections": "results",
        "train": "training.loop",
    }
    for name in detr_jax.__all__:
        wanted = (
            getattr(importlib.import_module(f"detr_jax.{modules[name]}"), name)
            if name in modules
            else importlib.import_module(f"detr_jax.{name}")
        )
        assert getattr(detr_jax, name) is wanted
        assert name in dir(detr_jax)
    with pytest.raises(AttributeError, match="Detectr"):
        _ = detr_jax.Detectr
    with pytest.raises(ImportError, match="modls"):
        exec("from detr_jax import modls")


def test_names_and_the_size_of_the_thread_pool_do_not_depend_on_what_was_imported_before():
    program = """
import os, sys
import detr_jax
print(os.environ.get("NPROC"), detr_jax.losses.set_loss.__name__, detr_jax.models.DETR.__name__, detr_jax.__version__)
from detr_jax import Detector, weights
"""
    environment = {"NPROC": "", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    program = program.replace("import detr_jax\n", 'os.environ.pop("NPROC")\nimport detr_jax\n', 1)
    words = _python(program, **environment).split()
    assert int(words[0]) >= 32
    assert words[1:] == ["set_loss", "DETR", detr_jax.__version__]


BROKEN = """
import importlib.abc, json, pkgutil, sys

class Broken(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow_datasets":
            raise TypeError("Descriptors cannot be created directly.")

sys.meta_path.insert(0, Broken())
import detr_jax
from detr_jax.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments, prog_name="detr-jax")
    except SystemExit as end:
        assert not end.code, arguments
for module in pkgutil.walk_packages(detr_jax.__path__, "detr_jax."):
    if module.name not in ("detr_jax.__main__", "detr_jax.data.tfds"):
        importlib.import_module(module.name)
"""


def test_everything_but_its_own_data_sets_works_without_tensorflow_datasets(tmp_path):
    shapes = str(tmp_path / "shapes")
    calls = [
        ["make-shapes", shapes, "--train", "3", "--val", "2"],
        ["check-data", "--dataset", "coco", "--root", shapes],
        ["buckets", "--dataset", "coco", "--root", shapes, "--config.training.batch_size=1"],
    ]
    assert "can be trained on" in _python(BROKEN, json.dumps(calls))


@pytest.mark.parametrize("error", [ImportError("No module named 'some'"), TypeError("Descriptors\nmore")])
def test_data_of_tensorflow_datasets_without_it_is_refused_in_a_sentence(monkeypatch, error):
    class Broken(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "tensorflow_datasets":
                raise error

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    for name in ("tensorflow_datasets", "detr_jax.data.tfds"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    result = run("check-data", "--dataset", "tfds", "--config.data.sources.tfds.name=coco/2017")
    assert result.exit_code == 1
    assert "data.dataset=tfds needs the package tensorflow-datasets, which cannot be imported" in result.stderr
    assert str(error).partition("\n")[0] in result.stderr
    assert "more" not in result.stderr
