"""The commands and the program of docs/quick-start.md, on a configuration that trains in seconds."""

import json
import re
import shlex
from pathlib import Path

import jax
import pytest
from click.testing import CliRunner

from detr_jax.cli import main
from detr_jax.training import loop

TEXT = (Path(__file__).parent.parent / "docs" / "quick-start.md").read_text()
CONFIG = "from tests.tiny import tiny_config as get_config\n"


@pytest.fixture
def one_device(monkeypatch):
    """Training and evaluation use one of the simulated devices."""
    create_mesh, devices = loop.create_mesh, jax.devices()[:1]
    monkeypatch.setattr(loop, "create_mesh", lambda: create_mesh(devices))
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_its_commands_and_its_program_run(tmp_path, monkeypatch, one_device, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "shapes.py").write_text(CONFIG)
    commands = [shlex.split(block) for block in re.findall(r"```bash\n(detr-jax .*?)```", TEXT, re.DOTALL)]
    assert [command[1] for command in commands] == ["train", "evaluate", "make-shapes", "predict", "import-weights"]
    for _, *arguments in commands[:-1]:  # the last one needs a file of another project: tests/weights/test_command.py
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
    assert "val/AP" in json.loads(Path("numbers.json").read_text())
    assert len(json.loads(Path("found/predictions.json").read_text())) == len(list(Path("found").glob("*.png"))) == 10
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    variables: dict = {}
    exec(compile(program.replace("0.7", "0"), "quick-start.md", "exec"), variables)
    assert len(variables["found"]) == len(capsys.readouterr().out.strip().splitlines()) > 0
