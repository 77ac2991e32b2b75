"""The commands and programs of README and docs, in the order of a reader, on stand-ins that train in seconds.

Not those of docs/scaling.md, which tests/test_distributed.py starts, nor of docs/memory-and-speed.md, which compile for
minutes: tests/cli/test_buckets_command.py.
"""

import functools
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from detr_jax.training import loop
from tests.cli.command import run
from tests.data.dataset_writers import write_yolo
from tests.weights.conftest import load_fixture
from tests.weights.framework_states import facebook

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("docs/quick-start.md", "README.md", "docs/fine-tuning.md", "docs/training.md", "docs/pictures.md")
FULL_SIZE = ("DETR(config", "presets.get_config")  # tests/test_readme.py and tests/test_quick_start.py run these
INSTALLING = ("python3 -m venv", "pip install")  # done by .ci/run
SHAPES = """
from detr_jax.testing import tiny_config

def get_config():
    config = tiny_config()
    return config
"""
COCO = SHAPES.replace("    return", "    config.data.dataset = 'auto'\n    return")
DEFORMABLE = COCO.replace("tiny_config", "tiny_deformable_config")
FINE_TUNING = """
from configs.finetune import get_config as full_config
from detr_jax.testing import tiny_config

def get_config():
    config, tiny = full_config(), tiny_config()
    config.data, config.loss = tiny.data, tiny.loss
    config.data.dataset = "auto"
    config.training.epochs, config.training.steps = None, 4
    return config
"""
CONFIGS = {
    "shapes": SHAPES,
    "coco": COCO,
    "finetune": FINE_TUNING,
    "small": DEFORMABLE,
    "deformable_coco": DEFORMABLE,
}


@pytest.fixture
def sandbox(tmp_path, monkeypatch, rng, one_device):
    """A folder with all that the documents leave to the reader; one of the simulated devices is used."""
    monkeypatch.setattr(loop, "train", functools.partial(loop.train, mesh=one_device))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "model"), *sys.path])  # where docs/fine-tuning.md finds loader.py
    (tmp_path / "configs").mkdir()
    for name, text in CONFIGS.items():
        (tmp_path / "configs" / f"{name}.py").write_text(text)
    assert run("make-shapes", "COCO", "--train", 16, "--val", 8, "--max-size", 32, "--min-size", 24).exit_code == 0
    data = "{names: [circle, square, triangle], train: images/train, val: images/val}"
    write_yolo(tmp_path / "COCO", tmp_path / "YOLO", data=data)
    save_file(facebook(load_fixture("bottleneck").weights), tmp_path / "detr-r50-e632da11.safetensors")
    image = rng.integers(0, 255, (30, 28, 3), dtype=np.uint8)
    (tmp_path / "PHOTOS").mkdir()
    for name in ("photo.jpg", "image.png", "PHOTOS/1.jpg", "PHOTOS/2.jpg"):
        Image.fromarray(image).save(name)
    with jax.numpy_dtype_promotion("standard"):
        yield {"image": image}


def blocks(document: str) -> list[tuple[str, str]]:
    """Language and content of each program and each list of commands."""
    return re.findall(r"```(bash|python)\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def with_stand_ins(text: str) -> str:
    """A command or program that takes the sandbox's files."""
    stand_ins = {
        **{f"--config {name}": f"--config configs/{name}.py" for name in CONFIGS},
        "init_from=detr-r50-e632da11.pth": "init_from=runs/shapes",  # a smaller one
        ".pth": ".safetensors",
        "init_from=CHECKPOINT": "init_from=runs/shapes",
        "FOLDER": "YOLO" if "finetune" in text else "COCO",
        "0.7": "0",
        "threshold=0.5": "threshold=0",
    }
    for name, stand_in in stand_ins.items():
        text = text.replace(name, stand_in)
    return text


def perform(command: str) -> None:
    """Runs one command in this process, as a shell would in its own."""
    program, *arguments = shlex.split(with_stand_ins(command), comments=True)
    if (program, *arguments[:1]) == ("python", "train.py"):
        program, arguments = "detr-jax", ["train", *arguments[1:]]
    assert program == "detr-jax", f"no test runs {command}"
    result = run(*arguments)
    assert result.exit_code == 0, (command, result.output)


def test_all_commands_and_programs_of_the_documents_run(sandbox, capsys):
    done = set()
    for document in DOCUMENTS:
        for language, content in blocks(document):
            if language == "python":
                importlib.invalidate_caches()
                if not any(text in content for text in FULL_SIZE):
                    exec(compile(with_stand_ins(content), document, "exec"), dict(sandbox))
                continue
            for command in content.replace("\\\n", " ").strip().splitlines():
                if command not in done and not command.startswith(INSTALLING):
                    done.add(command)
                    perform(command)
    assert len(done) >= 13
    assert "val/AP" in json.loads(Path("numbers.json").read_text())
    answers = json.loads(Path("found/predictions.json").read_text())
    assert [answer["file"] for answer in answers] == ["PHOTOS/1.jpg", "PHOTOS/2.jpg"]
    assert all((Path("found") / f"{i}.jpg").is_file() for i in (1, 2))
    assert all((Path("runs/shapes/report") / name).is_file() for name in ("index.html", "loss.png"))
    assert all(Path(name).is_file() for name in ("training.webp", "attention.png", "model/loader.py"))
