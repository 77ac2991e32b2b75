import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from PIL import Image

from detr_jax.checkpoints import Checkpoints
from detr_jax.cli import main
from detr_jax.config import to_json
from detr_jax.data import open_source
from detr_jax.evaluation.detections_file import StoredDetections, read_detections, snapshot_steps, write_detections
from detr_jax.evaluation.report import read_run
from detr_jax.evaluation.training_charts import training_charts
from detr_jax.models import DETR
from detr_jax.testing import tiny_config


def _detections(rng, source, images, step):
    """Random detections of 5 queries."""
    corner = rng.uniform(0, 12, (images, 5, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 12, (images, 5, 2))], axis=2).astype(np.float32)
    scores, labels = rng.random((images, 5)).astype(np.float32), rng.integers(0, 3, (images, 5)).astype(np.int32)
    return StoredDetections(step, np.array(source.image_ids[:images]), boxes, scores, labels)


@pytest.fixture
def workdir(tmp_path, rng):
    """A workdir like one of a run of the tiny configuration, but without training."""
    config = tiny_config()
    source = open_source(config, "val")
    (tmp_path / "config.json").write_text(to_json(config))
    lines = [
        {
            **{"step": s, "train/loss": 9.0 / s, "train/loss_mine": 1.0 / s, "train/loss_mine_0": 2.0 / s},
            **{"train/learning_rate": 1e-3, "val/AP": 0.1 * s},
        }
        for s in (1, 2, 3)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"st')
    write_detections(tmp_path / "detections.npz", _detections(rng, source, len(source), 3))
    for step in (0, 1, 3):
        write_detections(tmp_path / "snapshots" / f"{step}.npz", _detections(rng, source, 4, step))
    return tmp_path


def _run(*arguments):
    return CliRunner().invoke(main, ["plot", *map(str, arguments)])


def test_the_report_is_png_files_and_one_self_contained_page_and_has_every_loss_term(workdir):
    result = _run(workdir)
    assert result.exit_code == 0, result.output
    report = workdir / "report"
    names = {file.name for file in report.iterdir()}
    assert {"loss.png", "ap.png", "precision_recall.png", "confusion.png", "class_ap.png", "worst_01.png"} <= names
    page = (report / "index.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == len(names)  # all pictures, and an empty icon
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert {"terms.png", "loss_mine_layers.png"} <= names, "a loss term that only this run has"
    assert "Loss term of every layer: mine." in page


def test_metrics_that_are_not_defined_are_not_drawn(workdir, monkeypatch):
    drawn = {}
    monkeypatch.setattr("detr_jax.visualization.charts.lines", lambda path, title, curves, **_: drawn.update(curves))
    lines = [{"step": 4, "val/AP": None}, {"step": 5, "val/AP": -1.0}, {"step": 6, "val/AP": 0.0}]  # -1: version 0.1
    with (workdir / "metrics.jsonl").open("a") as file:
        file.writelines("\n" + json.dumps(line) for line in lines)
    training_charts(read_run(workdir)[1], workdir)
    steps, values = drawn["AP"]
    assert steps == [1, 2, 3, 6]
    assert values == pytest.approx([0.1, 0.2, 0.3, 0.0])


def test_every_loss_term_diagnostic_and_metric_of_the_log_is_drawn_by_name(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        "detr_jax.visualization.charts.lines", lambda path, title, curves, **_: drawn.update({title: dict(curves)})
    )
    values = {
        **{"train/loss": 9.0, "train/loss_mine": -1.0, "train/loss_mine_0": 3.0, "train/loss_giou": 4.0},
        **{"train/empty_queries": 5.0, "train/learning_rate": 6.0, "val/AP": 0.1, "val/AP/circle": 0.2},
        **{"val/again_AP": 0.3, "val/mine_score": 7.0, "train/images_per_s": 8.0},
    }
    training_charts([{"step": 2, **values}], tmp_path)
    assert {title: {label: float(ys[0]) for label, (_, ys) in curves.items()} for title, curves in drawn.items()} == {
        "Loss": {"loss": 9.0},
        "Loss terms, last decoder layer, unweighted": {"GIoU of boxes": 4.0, "mine": -1.0},
        "Loss term of every layer: mine": {"layer 1": 3.0, "last layer": -1.0},
        "Empty queries": {"empty_queries": 5.0},
        "Learning rates": {"transformer": 6.0},
        "Validation": {"AP": 0.1},
        "Validation (again)": {"AP": 0.3},
        "Validation: Mine score": {"mine_score": 7.0},
    }


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_an_animation_has_one_frame_per_snapshot(workdir, suffix):
    result = _run(workdir, "--animation", workdir / f"a.{suffix}")
    assert result.exit_code == 0, result.output
    with Image.open(workdir / f"a.{suffix}") as picture:
        assert picture.n_frames == 3


def test_attention_of_an_image_is_drawn(tmp_path, rng, rngs):
    config = tiny_config()
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(0, {"params": nnx.as_pure(nnx.state(DETR(config.model, rngs=rngs)))}, config)
    checkpoints.close()
    Image.fromarray(rng.integers(0, 255, (27, 30, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    out = tmp_path / "out.png"
    result = _run(tmp_path, "--attention", tmp_path / "a.png", "--out", out, "--threshold", "0", "--point", "29", "26")
    assert result.exit_code == 0, result.output
    with Image.open(out) as picture:
        assert picture.width > 4 * 300  # the image, 5 queries and a point, four in a row
    result = _run(tmp_path, "--attention", tmp_path / "a.png", "--out", out, "--point", "30", "26")
    assert result.exit_code == 1
    assert "--point: The point (30, 26) lies outside of the image, 30 x 27 pixels" in result.output

    result = _run(tmp_path, "--attention", tmp_path / "none.png", "--out", out)
    assert result.exit_code == 1
    assert "none.png does not exist" in result.output


def test_wrong_input_ends_in_one_sentence(workdir, tmp_path):
    for arguments, words in [
        ((tmp_path / "nothing",), "config.json"),
        ((workdir, "--animation", "a.mp4"), ".gif"),
        ((workdir, "--attention", "a.png", "--animation", "a.gif"), "give only one of them"),
        ((workdir, "--animation", "a.gif", "--out", "b.gif"), "remove --out"),
        ((workdir, "--point", "1", "2"), "--point is only for --attention=IMAGE"),
        ((workdir, "--threshold", "0.1"), "--threshold is only for --attention=IMAGE"),
        ((workdir, "--attention", "a.png", "--out", "a.xyz"), "--out=a.xyz must end in"),
    ]:
        result = _run(*arguments)
        assert result.exit_code == 1
        assert words in result.output
        assert "Traceback" not in result.output
    found = read_detections(workdir / "detections.npz")
    other, fewer = replace(found, image_ids=found.image_ids + 1), found.first(len(found.image_ids) - 1)
    for changed, words in [(other, "which is not in the data set"), (fewer, "lacks image")]:
        write_detections(workdir / "detections.npz", changed)
        result = _run(workdir)
        assert result.exit_code == 1
        assert words in result.output
    (workdir / "detections.npz").write_bytes(b"PK damaged")
    assert "delete it" in _run(workdir).output


def test_detections_are_read_as_they_were_written(tmp_path, rng):
    found = _detections(rng, open_source(tiny_config(), "val"), 3, 7)
    write_detections(tmp_path / "a.npz", found)
    read = asdict(read_detections(tmp_path / "a.npz"))
    for name, values in asdict(found).items():
        np.testing.assert_array_equal(read[name], values, err_msg=name)


def test_snapshots_are_denser_at_the_beginning():
    steps = sorted(snapshot_steps(5000, 32))
    assert (steps[0], steps[1], steps[-1], len(steps)) == (0, 5, 5000, 32)
    assert (np.diff(np.diff(steps)) >= -1).all()
    assert snapshot_steps(5000, 0) == frozenset()
    assert snapshot_steps(3, 32) == {0, 1, 2, 3}
