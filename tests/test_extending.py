"""The four parts that docs/extending.md adds to the package, run from the files that it shows."""

import csv
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from detr_jax import Detector, export_loader
from detr_jax.config import LossConfig, ShapesConfig, unknown_field
from detr_jax.data import ShapesDataset, TrainPlan, batches, open_source
from detr_jax.losses import set_loss
from detr_jax.matching import match, matching_cost
from detr_jax.structures import Outputs, Predictions, Targets
from tests.cli.command import run

DOCUMENT = Path(__file__).parent.parent / "docs" / "extending.md"
MODULES = ("mine", "boxes_file", "camera_noise", "center_distance", "patches")
SMALLER = [f"--config.{change}" for change in (
    "data.train_short_sides=()", "data.crop_short_sides=()", "data.val_short_side=0", "data.num_threads=2",
    "model.num_queries=5", "model.hidden_dim=16", "model.num_heads=2", "model.feedforward_dim=32",
    "model.encoder_layers=1", "model.decoder_layers=2", "loss.matcher=device", "training.batch_size=4",
    "model.backbone.patch=12", "model.backbone.width=16", "model.backbone.depth=1",
    "training.steps=3", "training.log_every=1", "evaluation.batch_size=4", "evaluation.snapshots=0",
)]  # fmt: skip


def files_of_the_document() -> dict[str, str]:
    """The Python blocks of the document by the file name in their first line."""
    blocks = re.findall(r"```python\n(# (\w+)\.py\n.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    return {name: text for text, name in blocks}


def write_split(folder: Path, split: str) -> None:
    """Write drawn shapes as images and a CSV file of boxes."""
    drawn = ShapesDataset(ShapesConfig(train_images=16, val_images=8, min_size=24, max_size=32), split)
    folder.mkdir(parents=True)
    with (folder / "boxes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "x0", "y0", "x1", "y1", "name"])
        for i in range(len(drawn)):
            sample = drawn[i]
            Image.fromarray(sample.image).save(folder / f"{i:02}.png")
            for box, label in zip(sample.objects.boxes.tolist(), sample.objects.labels.tolist(), strict=True):
                rows.writerow([f"{i:02}.png", *box, drawn.categories[label]])
            if not len(sample.objects.labels):
                rows.writerow([f"{i:02}.png", "", "", "", "", ""])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder outside of the package with the files of the document and the data, as the working directory."""
    folder = tmp_path_factory.mktemp("outside")
    for name, text in files_of_the_document().items():
        (folder / f"{name}.py").write_text(text)
    for split in ("train", "val"):
        write_split(folder / "DATA" / split, split)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.chdir(folder)
        patch.setattr(sys, "path", sys.path.copy())
        yield folder
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def trained(folder):
    """The workdir of a run of three steps."""
    result = run("train", "--config", "mine.py", "--workdir", "runs/mine", *SMALLER)
    assert result.exit_code == 0, result.output
    return folder / "runs" / "mine"


@pytest.fixture
def config(folder):
    """The configuration of mine.py, for the small images of the test."""
    from detr_jax.cli.configuration import read_config

    return read_config("mine.py", SMALLER)


def test_the_document_shows_the_files_that_it_describes():
    assert set(files_of_the_document()) == set(MODULES)


def test_every_field_that_the_document_names_is_one_of_its_configuration(config):
    fields = re.findall(r"--config\.([\w.]+\w)", DOCUMENT.read_text(encoding="utf-8"))
    assert len(fields) >= 3
    for field in fields:
        assert unknown_field(field, config) is None, field


def test_the_data_source_has_the_boxes_and_names_of_its_file(folder, config):
    source = open_source(config, "val")
    rows = list(csv.DictReader((folder / "DATA" / "val" / "boxes.csv").open()))
    images = sorted({row["image"] for row in rows})
    assert len(source) == len(images) == 8
    assert any(not row["name"] for row in rows), "an image without objects"
    for i, image in enumerate(images):
        own = [row for row in rows if row["image"] == image and row["name"]]
        expected = [[float(row[side]) for side in ("x0", "y0", "x1", "y1")] for row in own]
        np.testing.assert_array_equal(source[i].objects.boxes, np.float32(expected).reshape(-1, 4))
        assert [source.categories[label] for label in source[i].objects.labels] == [row["name"] for row in own]
        np.testing.assert_array_equal(source[i].image, np.asarray(Image.open(folder / "DATA" / "val" / image)))


def test_a_run_trains_on_the_data_source_and_evaluates_on_it(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3]
    assert lines[-1]["val/AP"] is not None
    assert json.loads((trained / "config.json").read_text())["data"]["sources"]["boxes"] == {
        "kind": "boxes_file:BoxesFile",
        "file": "boxes.csv",
        "names": ["circle", "square", "triangle"],
    }


def images_of_each_step(config, start=0):
    """The images of the steps of an epoch, from step ``start`` on."""
    source = open_source(config, "train")
    plan = TrainPlan(source, config.data, 4, seed=3)
    stream = batches(plan, source, 4, config.data, start=start)
    return [next(stream).inputs.images for _ in range(start, plan.steps_per_epoch)]


def test_the_augmentation_changes_pixels_and_a_resumed_run_sees_the_same(config):
    whole, resumed = images_of_each_step(config), images_of_each_step(config, start=1)
    assert len(whole) > 1
    for one, again in zip(whole[1:], resumed, strict=True):
        np.testing.assert_array_equal(one, again)
    config.data.augmentation.photometric = None
    for noisy, clean in zip(whole, images_of_each_step(config), strict=True):
        difference = noisy.astype(float) - clean
        assert 0.1 < difference.std() < 8
        assert abs(difference.mean()) < 1


def test_the_loss_term_is_part_of_the_loss_and_of_the_log_and_the_report(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    weights = {"ce": 1, "bbox": 5, "giou": 2, "center": 3}
    for line in lines:
        if "train/loss" in line:
            names = [(name, layer) for name in weights for layer in ("", "_0")]
            total = sum(weights[name] * line[f"train/loss_{name}{layer}"] for name, layer in names)
            np.testing.assert_allclose(line["train/loss"], total, rtol=1e-5)
            assert line["train/loss_center"] > 0
    result = run("plot", trained)
    assert result.exit_code == 0, result.output
    page = (trained / "report" / "index.html").read_text(encoding="utf-8")
    assert "Loss term of every layer: center." in page


def test_the_loss_term_is_the_squared_distance_of_the_centres(folder, rng):
    from center_distance import CenterDistance

    boxes, wanted = rng.random((2, 1, 6, 4), np.float32), rng.random((1, 3, 4), np.float32)
    targets = Targets(boxes=wanted, labels=np.zeros((1, 3), np.int32), count=np.int32([2]))
    outputs = Outputs(layers=Predictions(logits=rng.random((2, 1, 6, 4), np.float32), boxes=boxes))
    config = LossConfig(terms={"center": CenterDistance(weight=1.5)}, matcher="device")
    _, terms = set_loss(outputs, targets, config)
    queries = np.asarray(match(matching_cost(outputs.layers, targets, config.costs), targets.count, "device"))
    expected = sum(np.sum((boxes[-1, 0, queries[-1, 0, t], :2] - wanted[0, t, :2]) ** 2) for t in range(2)) / 2
    np.testing.assert_allclose(terms["loss_center"], expected, rtol=1e-5)


def test_the_backbone_is_saved_loaded_and_exported(trained, config, rng):
    detector = Detector.from_checkpoint(trained)
    assert (type(detector.config.model.backbone).__name__, detector.config.model.stride) == ("Patches", 12)
    image = rng.integers(0, 255, (30, 28, 3), dtype=np.uint8)
    found = detector.predict(image, threshold=0.0)
    assert len(found) == 5

    result = run("export", "runs/mine", "exported", "--bucket", "36x36")
    assert result.exit_code == 0, result.output
    (exported,) = export_loader.Detector("exported").predict([image], threshold=0.0)
    np.testing.assert_allclose(np.sort(exported.scores), np.sort(found.scores), atol=1e-4)
    np.testing.assert_allclose(np.sort(exported.boxes, axis=0), np.sort(found.boxes, axis=0), atol=1e-2)


def test_padding_does_not_change_what_the_backbone_returns(config, rng):
    model = config.model.build(rngs=nnx.Rngs(0))
    image = rng.integers(0, 255, (1, 30, 28, 3), dtype=np.uint8)
    size = jnp.array([[30, 28]])
    small, large = (np.zeros((1, side, side, 3), np.uint8) for side in (36, 60))
    small[:, :30, :28], large[:, :30, :28] = image, image
    one, other = (model(model.normalize(jnp.asarray(x), size), size) for x in (small, large))
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-5)


def test_check_data_reads_the_data_source(folder):
    result = run("check-data", "--config", "mine.py")
    assert result.exit_code == 0, result.output
    assert "circle" in result.output
    assert "The data can be trained on." in result.output


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("09.png,1,2,3,4,circel", "line {line}: 'circel' must be one of circle, square, triangle."),
        ("09.png,1,2,x,4,circle", "line {line}: could not convert string to float: 'x'."),
        ("09.png,1,2,nan,4,circle", "image 9 has the box [1.0, 2.0, nan, 4.0], which must be four finite numbers"),
    ],
)
@pytest.mark.parametrize("command", ["train", "check-data"])
def test_a_bad_row_is_refused_with_its_line_or_image(folder, tmp_path, row, words, command):
    write_split(tmp_path / "train", "train")
    write_split(tmp_path / "val", "val")
    with (tmp_path / "train" / "boxes.csv").open("a") as file:
        file.write(row + "\n")
    line = len((tmp_path / "train" / "boxes.csv").read_text().splitlines())
    arguments = ["--workdir", tmp_path / "run", *SMALLER] if command == "train" else []
    result = run(command, "--config", "mine.py", f"--config.data.root={tmp_path}", *arguments)
    assert result.exit_code == 1
    assert words.format(line=line) in result.output
    assert not (tmp_path / "run").exists()


def test_missing_data_and_errors_in_the_code_of_the_source_are_sentences(folder, tmp_path):
    result = run("train", "--config", "mine.py", f"--config.data.root={tmp_path}", *SMALLER)
    assert result.exit_code == 1
    assert f"{tmp_path}/train/boxes.csv does not exist: set data.root" in result.output
    for split in ("train", "val"):
        write_split(tmp_path / split, split)
    (tmp_path / "train" / "03.png").unlink()
    result = run("check-data", "--config", "mine.py", f"--config.data.root={tmp_path}")
    assert result.exit_code == 1
    words = r"train: data\.sources\.boxes \(BoxesFile\) cannot be opened: \S+boxes_file\.py, line \d+: FileNotFound"
    assert re.search(words, result.output)


def test_boxes_that_were_clipped_or_dropped_are_counted_by_check_data_and_training(folder, tmp_path):
    for split in ("train", "val"):
        write_split(tmp_path / split, split)
    with (tmp_path / "train" / "boxes.csv").open("a") as file:
        file.write("09.png,1,2,300,4,circle\n09.png,9,9,5,5,circle\n")
    root = f"--config.data.root={tmp_path}"
    for result in (
        run("check-data", "--config", "mine.py", root),
        run("train", "--config", "mine.py", "--workdir", tmp_path / "run", *SMALLER, root, "--config.training.steps=1"),
    ):
        assert result.exit_code == 0, result.output
        assert "boxes that reach outside of their image were clipped: 1 (image 9, box [1, 2, 300, 4]" in result.output
        assert "boxes without area were dropped from training" in result.output
