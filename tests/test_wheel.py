"""The wheel holds everything that a training by name needs, without a clone of the repository."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from detr_jax.presets import PRESETS

ROOT = Path(__file__).parent.parent


def _build(folder, time=1_700_000_000):
    """A wheel, built in a folder from a copy of the package whose files have this time of change."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "detr_jax", folder / "detr_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for path in folder.rglob("*"):
        os.utime(path, (time, time))
    program = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    built = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    return folder / built.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the package."""
    return _build(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_can_be_built_again_with_the_same_bytes(wheel, tmp_path):
    again = _build(tmp_path, time=1_750_000_000)
    assert again.name == wheel.name
    assert again.read_bytes() == wheel.read_bytes()


def test_the_wheel_holds_every_module_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "detr-jax = detr_jax.cli:main" in file.read(entry_points).decode()
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "detr_jax").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules


def test_the_installed_wheel_lists_and_reads_presets_in_an_empty_folder(wheel, tmp_path):
    unpacked, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", unpacked, wheel]
    subprocess.run(command, check=True, timeout=120)
    assert (unpacked / "bin" / "detr-jax").is_file()
    program = """
import detr_jax.presets
from detr_jax.cli import main
for name in ("shapes", "small"):
    print(detr_jax.presets.__file__, detr_jax.presets.get_config(name).training.batch_size)
main(["train", "--help"], prog_name="detr-jax")
"""
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=empty, env=environment, capture_output=True, text=True, check=True
    )
    first, second, *text = ended.stdout.splitlines()
    file = unpacked / "detr_jax" / "presets" / "__init__.py"
    assert (first, second) == (f"{file} 32", f"{file} 8")
    for name, description in PRESETS.items():
        assert any(line.split(maxsplit=1) == [name, description] for line in text)
