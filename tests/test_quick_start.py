"""docs/quick-start.ipynb runs from its first cell to its last in an empty folder, and shows boxes."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "quick-start.ipynb"
SHORTER = {"1000": "20", '"2048"': '"64"', "threshold=0.3": "threshold=0.0"}
"""What the test makes smaller, so that it takes seconds."""


def test_the_notebook_runs_from_nothing_to_boxes(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        for text, shorter in SHORTER.items():
            cell.source = cell.source.replace(text, shorter)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))  # the kernel runs in another folder
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device, compiled fast
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if output.output_type == "execute_result"]
    assert any("<table>" in data.get("text/html", "") for data in shown)
    assert "image/png" in shown[-1]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "(20, " in printed, "the losses that on_log collected"


def test_the_stored_notebook_shows_what_its_cells_gave():
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert not any(output.output_type == "error" for output in cell.outputs)
