import runpy
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"

EXPECTED = {
    "walkthrough.py": (
        ("features (2, 8, 8, 32)", "logits (2, 2, 8, 4)"),
        {"position.png", "attention.png", "predictions.png"},
    ),
    "walkthrough_deformable.py": (
        ("levels ((16, 16), (8, 8), (4, 4))", "sampling points (1, 336, 4, 3, 4, 2)", "logits (2, 1, 8, 3)"),
        {"sampling.png"},
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_walkthrough_runs_and_prints_the_shapes(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(DOCS / name))
    printed = capsys.readouterr().out
    lines, pictures = EXPECTED[name]
    assert all(line in printed for line in lines)
    assert {file.name for file in Path("walkthrough").iterdir()} == pictures
