import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _train(*arguments, cwd=ROOT):
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "NPROC": ""}  # one device
    command = [sys.executable, str(ROOT / "train.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=300, check=False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config shapes"),
        (["--config", "configs/nothing.py"], "configs/nothing.py"),
        (["--config", "configs/shapes.py", "--config.training.stepz=3"], "training.stepz"),
        (["--config", "configs/shapes.py", "--config.optimiser.learning_rate=3"], "optimiser"),
        (["--config", "configs/shapes.py", "--config.training.steps=many"], "training.steps"),
        (["--config", "configs/shapes.py", "--config.loss.matcher=best"], "loss.matcher='best'"),
        (["--config", "configs/shapes.py", "--bogus=1"], "bogus"),
        (["--config", "configs/shapes.py", "steps=3"], "steps=3"),
        (["--config", "configs/coco.py"], "data.root"),
        (["--config", "configs/coco.py", "--config.data.root=nowhere"], "data.root=nowhere"),
    ],
)
def test_bad_arguments_end_in_a_sentence_without_traceback(tmp_path, arguments, words):
    result = _train(*arguments, *(["--workdir", tmp_path / "run"] if arguments else []))
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text",
    ["", "import nothing_of_this_name", "def get_config():\n  return {}", "def get_config():\n  return 1 / 0", "("],
)
def test_a_configuration_file_that_gives_no_config_is_refused(tmp_path, text):
    (tmp_path / "odd.py").write_text(text)
    result = _train("--config", tmp_path / "odd.py", "--workdir", tmp_path / "run")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    result = _train("--config", "configs/shapes.py", "--workdir", file / "run")
    assert result.returncode == 1
    assert result.stderr == f"--workdir={file / 'run'} cannot be used ({file} is a file): choose another folder.\n"


def test_a_short_run_ends_with_its_metrics(tmp_path):
    result = _train(
        *("--config", "configs/shapes.py", "--workdir", tmp_path / "run"),
        *("--config.training.steps=2", "--config.data.sources.shapes.val_images=8", "--config.evaluation.pictures=2"),
    )
    assert result.returncode == 0, result.stderr
    assert "validation at step 2: AP" in result.stdout
    assert (tmp_path / "run" / "predictions.png").exists()
