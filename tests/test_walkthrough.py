import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "docs" / "walkthrough.py"


def test_the_walkthrough_runs_and_prints_the_shapes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    runpy.run_path(str(SCRIPT))
    printed = capsys.readouterr().out
    assert "features (2, 8, 8, 32)" in printed
    assert "logits (2, 2, 8, 4)" in printed
    assert {file.name for file in Path("walkthrough").iterdir()} == {"position.png", "attention.png", "predictions.png"}
