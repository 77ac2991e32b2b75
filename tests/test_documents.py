"""The documents say what the code does."""

import dataclasses
import re
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from configs import finetune
from detr_jax.cli import main
from detr_jax.config import CocoFiles, ColorJitter, Config, DetrAugmentation, ModelConfig, check, unknown_field

DOCS = Path(__file__).parent.parent / "docs"
NAMES = sorted(path.name for path in DOCS.glob("*.md"))


def test_the_configuration_reference_is_that_of_the_code():
    written = runpy.run_path(str(DOCS / "configuration.py"))["reference"]()
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == written, "run python docs/configuration.py"


def _parts(value):
    """The classes of a configuration's parts, and of those that it can hold instead."""
    if dataclasses.is_dataclass(value):
        yield type(value)
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    for part in value.values() if isinstance(value, dict) else ():
        yield from _parts(part)


def test_every_field_is_described():
    texts = runpy.run_path(str(DOCS / "configuration.py"))["texts"]
    classes = {*_parts(Config()), ColorJitter}
    assert {CocoFiles, DetrAugmentation, ModelConfig} <= classes
    for cls in classes:
        described = {name for name, text in texts(cls).items() if len(text) > 10}
        assert described >= {f.name for f in dataclasses.fields(cls)}, cls


@pytest.mark.parametrize("name", NAMES)
def test_every_field_command_and_file_that_is_named_exists(name):
    text = (DOCS / name).read_text(encoding="utf-8")
    for path in re.findall(r"--config\.([\w.]+\w)", text) if name != "extending.md" else ():
        assert unknown_field(path) is None, path
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for command in re.findall(r"^detr-jax ([\w-]+)", block, re.MULTILINE):
            assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0, command
        for file in re.findall(r"(?:configs|benchmarks)/\w+\.py", block):
            assert (DOCS.parent / file).is_file(), file
    for target in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (DOCS / target).exists(), target


def test_the_fine_tuning_configuration_lacks_only_what_is_the_users():
    config = finetune.get_config()
    config.data.root, config.training.init_from = "folder", "checkpoint"
    assert check(config) is config
