"""``detr-jax train``, ``evaluate`` and ``predict`` with one trained model."""

import functools
import json
import os
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from click import ClickException
from flax import nnx
from PIL import Image

from detr_jax import Detector, host_memory
from detr_jax.checkpoints import Checkpoints, load_config, load_model
from detr_jax.cli.predict import find_labels
from detr_jax.config import ShapesConfig
from detr_jax.data.shapes import ShapesDataset, write_coco
from detr_jax.evaluation.coco import METRICS
from detr_jax.training import loop
from tests.cli.command import run

CONFIG = """
from detr_jax.testing import tiny_config

def get_config():
    config = tiny_config()
    config.data.sources["shapes"].train_images, config.data.sources["shapes"].val_images = 256, 200
    config.data.sources["shapes"].min_size, config.data.sources["shapes"].max_objects = 32, 1
    config.model.dropout, config.evaluation.every_epochs = 0.0, 0
    config.optimizer.learning_rate = config.optimizer.backbone_learning_rate = 3e-3
    config.training.steps, config.training.checkpoint_every, config.training.log_every = 120, 1000, 60
    return config
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, one_device):
    """The workdir of a run of ``detr-jax train`` on one device."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "small.py").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setattr(loop, "train", functools.partial(loop.train, mesh=one_device))
        result = run("train", "--config", folder / "small.py", "--workdir", folder / "work")
    assert result.exit_code == 0, result.output
    assert "finished" in result.output
    return folder / "work"


@pytest.fixture
def one_visible_device(monkeypatch):
    monkeypatch.setattr("detr_jax.sharding.jax.devices", lambda: jax.local_devices()[:1])


def test_evaluate_gives_the_logged_metrics_to_the_last_digit(workdir, tmp_path, one_visible_device):
    result = run("evaluate", workdir, "--json", tmp_path / "numbers.json")
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    logged = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < numbers["val/AR100"] < 1
    assert numbers == logged
    assert [line.split()[0] for line in result.stdout.splitlines()[:12]] == list(METRICS)
    assert result.stdout.splitlines()[8].split() == ["AR100", f"{logged['val/AR100']:.4f}"]
    assert "circle" in result.stdout


def test_evaluate_accepts_other_data_and_params_without_ema(workdir, tmp_path, one_visible_device):
    shapes = load_config(workdir).data.sources["shapes"]
    write_coco(ShapesConfig(**{**vars(shapes), "train_images": 1}), tmp_path / "coco")
    logged = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    result = run("evaluate", workdir, "--root", tmp_path / "coco", "--json", tmp_path / "same.json")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "same.json").read_text()) == logged  # the same images from files
    assert "other names" not in result.stderr
    annotations = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    annotations.write_text(annotations.read_text().replace('"circle"', '"ring"'))
    result = run("evaluate", workdir, "--root", tmp_path / "coco")
    assert "1 have other names in the model (0 is 'circle' to the model and 'ring' in the data)" in result.stderr
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps({**content, "annotations": []}))
    empty = ("evaluate", workdir, "--root", tmp_path / "coco", "--json", tmp_path / "none.json")
    assert "but no object to train on" in run(*empty).output
    result = run(*empty, "--config.data.allow_empty=True")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0] == "AP     no such objects"
    numbers = json.loads((tmp_path / "none.json").read_text())
    assert {value for name, value in numbers.items() if name != "step"} == {None}
    result = run(
        "evaluate", workdir, "--no-ema", "--config.data.sources.shapes.val_images=8", "--json", tmp_path / "few.json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "few.json").read_text()) != logged


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--root", "nowhere"], "data.root=nowhere does not exist"),
        (["--config.model.num_queries=3"], "cannot be changed"),
        (["--config.data.flop=1"], "data.flop"),
        (["--dataset", "none"], "data.dataset='none'"),
        (["--json", "nowhere/numbers.json"], "nowhere/numbers.json cannot be written"),
    ],
)
def test_evaluate_ends_in_one_sentence_on_wrong_input(workdir, arguments, words, one_visible_device):
    result = run("evaluate", workdir, *arguments)
    assert result.exit_code == 1
    assert words in result.stderr


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "--out"]])
def test_a_folder_that_is_not_a_checkpoint_is_refused(tmp_path, command):
    rest = [tmp_path / "out", tmp_path / "nowhere", "image.png"] if "predict" in command else [tmp_path / "nowhere"]
    result = run(*command, *rest)
    assert result.exit_code == 1
    assert "nowhere does not exist" in result.stderr
    assert not (tmp_path / "out").exists()


def _save_shapes(folder, rng, count):
    """Writes image files of shapes."""
    folder.mkdir()
    shapes = ShapesDataset(
        ShapesConfig(val_images=count, min_size=20, max_size=32, seed=int(rng.integers(2**31))), "val"
    )
    for index in range(count):
        Image.fromarray(shapes[index].image).save(folder / f"{index}.png")
    return [folder / f"{index}.png" for index in range(count)]


def test_predict_configures_memory_before_jax_starts(workdir, tmp_path, rng, monkeypatch):
    calls = []
    started = jax.default_backend
    monkeypatch.setattr(host_memory, "keep_freed_memory", lambda: calls.append("keep"))
    monkeypatch.setattr(jax, "default_backend", lambda: calls.append("start") or started())
    result = run("predict", workdir, *_save_shapes(tmp_path / "photos", rng, 1), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert calls[0] == "keep"
    assert "start" in calls


def test_predict_lists_each_image_once_in_order_and_draws_it(workdir, tmp_path, rng):
    files = _save_shapes(tmp_path / "photos", rng, 5)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    other = _save_shapes(tmp_path / "other", rng, 1)
    out = tmp_path / "out"
    result = run(
        *("predict", workdir, other[0], tmp_path / "photos", tmp_path / "*" / "1.png"),
        *("--out", out, "--threshold", 0, "--batch-size", 2),
    )
    assert result.exit_code == 0, result.output
    entries = json.loads((out / "predictions.json").read_text())
    expected = [other[0], *files]
    assert [entry["file"] for entry in entries] == list(map(str, expected))
    assert [entry["picture"] for entry in entries] == ["0.png", "0-2.png", "1.png", "2.png", "3.png", "4.png"]
    detector = Detector.from_checkpoint(workdir)
    assert detector.class_names == {0: "circle", 1: "square", 2: "triangle"}
    for entry, found in zip(entries, detector.predict(expected, threshold=0), strict=True):
        assert (entry["height"], entry["width"]) == found.size
        np.testing.assert_allclose([row["box"] for row in entry["detections"]], found.boxes, atol=0.051)
        np.testing.assert_allclose([row["score"] for row in entry["detections"]], found.scores, atol=1e-4)
        assert [row["name"] for row in entry["detections"]] == list(found.names)
        assert entry["detections"][0].keys() == {"box", "score", "label", "name"}
    names = ["0.png", "0-2.png", "1.png", "2.png", "3.png", "4.png"]
    assert sorted(path.name for path in out.iterdir()) == sorted([*names, "predictions.json"])
    for name, file in zip(names, expected, strict=True):
        with Image.open(out / name) as picture, Image.open(file) as image:
            scale = round(320 / max(image.size))
            assert picture.size == (scale * image.width, scale * image.height)
            assert not np.array_equal(picture, image.resize(picture.size, Image.Resampling.NEAREST))


def _rows(out):
    """The detections of each image in predictions.json."""
    return [entry["detections"] for entry in json.loads((out / "predictions.json").read_text())]


def test_predict_keeps_the_requested_classes_and_number_and_rounds_its_numbers(workdir, tmp_path, rng):
    files, out = _save_shapes(tmp_path / "photos", rng, 3), tmp_path / "out"
    wanted = {0, 2}
    found = [one.only(wanted, max_detections=2) for one in Detector.from_checkpoint(workdir).predict(files, 0)]
    arguments = ("predict", workdir, *files, "--out", out, "--threshold", 0, "--no-pictures", "--max-detections", 2)
    for classes in (["--classes", "circle, triangle"], ["--classes", "TRIANGLE", "--classes", "0"]):
        result = run(*arguments, *classes)
        assert result.exit_code == 0, result.output
        for rows, one in zip(_rows(out), found, strict=True):
            assert [row["label"] for row in rows] == one.labels.tolist()
            for row, box, score in zip(rows, one.boxes.tolist(), one.scores.tolist(), strict=True):
                assert row["box"] == pytest.approx(box, abs=0.0501)
                assert row["score"] == pytest.approx(score, abs=6e-4)
                assert all(str(x) == f"{x:.1f}" and str(x) != "-0.0" for x in row["box"])
                assert len(str(row["score"])) <= 6
    result = run(*arguments, "--classes", "circle,sqare")
    assert result.exit_code == 1
    assert "no class 'sqare' (did you mean 'square'?). It has: 0 circle, 1 square, 2 triangle." in result.stderr


def test_predict_prepares_images_by_the_fields_of_data(workdir, tmp_path, rng):
    files, out = _save_shapes(tmp_path / "photos", rng, 2), tmp_path / "out"
    arguments = ("predict", workdir, *files, "--out", out, "--threshold", 0, "--no-pictures")
    changes = ("--config.data.val_short_side=16", "--config.data.val_buckets", "((32, 32),)")
    result = run(arguments[0], *changes, *arguments[1:])
    assert result.exit_code == 0, result.output
    data = load_config(workdir).data
    data.val_short_side, data.val_buckets = 16, ((32, 32),)
    for rows, one in zip(_rows(out), Detector.from_checkpoint(workdir, data=data).predict(files, 0), strict=True):
        np.testing.assert_allclose([row["box"] for row in rows], one.boxes, atol=0.051)
    for change, words in (
        ("--config.data.root=x", "cannot be changed: of its fields, a prediction uses data."),
        ("--config.model.num_queries=3", "cannot be changed"),
        ("--config.data.val_short_sid=3", "did you mean data.val_short_side?"),
        ("--config.data.val_short_side=much", "data.val_short_side='much' must be a whole number"),
        ("--config.data.val_short_side=-3", "data.val_short_side=-3 is out of range"),
        ("--config.data.val_buckets=((33, 32),)", "data.val_buckets holds (33, 32)"),
    ):
        result = run(*arguments, change)
        assert result.exit_code == 1, change
        assert words in result.stderr
    assert run(*arguments, "--treshold", 1).exit_code == 2


def test_classes_are_found_by_name_and_by_label():
    names = {1: "traffic light", 2: "bus, red", 3: "Bus", 4: "bus", 7: "1", 9: "train"}
    for given, labels in (
        (["traffic light"], {1}),
        (["bus, red", " train "], {2, 9}),
        (["bus"], {4}),
        (["BUS"], {3, 4}),
        (["1"], {7}),  # a name
        (["2,3,"], {2, 3}),
    ):
        assert find_labels(given, names, 99) == labels
    assert find_labels(["0", "98"], {}, 99) == {0, 98}
    for given, known, words in (
        (["5"], names, "no class '5'. It has: 1 traffic light, 2 bus, red"),
        (["bus,lorry"], names, "no class 'lorry'"),
        ([","], names, "no class ','"),
        (["99"], {}, "labels from 0 to 98"),
        (["cat"], {}, "holds no names"),
    ):
        with pytest.raises(ClickException, match=re.escape(words)):
            find_labels(given, known, 99)


@pytest.fixture
def odd_files(tmp_path, rng):
    """Good and bad image files. The names of the good files begin with "good"."""
    folder = tmp_path / "odd"
    files = _save_shapes(folder, rng, 2)
    for index, file in enumerate(files):
        file.rename(folder / f"good{index}.png")
    noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(np.tile(noise, (6, 6, 1))).save(folder / "truncated.jpg")
    os.truncate(folder / "truncated.jpg", (folder / "truncated.jpg").stat().st_size // 2)
    (folder / "text.jpg").write_text("These are words.")
    Image.new("RGB", (1, 1)).save(folder / "good-pixel.png")
    Image.new("RGB", (20_000, 500)).save(folder / "good-panorama.png")
    Image.fromarray(noise).save(folder / "good-moving.gif", save_all=True, append_images=[Image.new("RGB", (32, 32))])
    (tmp_path / "empty").mkdir()
    return folder


def test_predict_reports_unreadable_files_and_processes_the_others(workdir, odd_files, tmp_path):
    empty, missing, out = tmp_path / "empty", tmp_path / "missing.jpg", tmp_path / "out"
    result = run("predict", workdir, missing, empty, odd_files, "no/*.png", "a" * 300, "--out", out)
    assert result.exit_code == 1
    done = [Path(entry["file"]).name for entry in json.loads((out / "predictions.json").read_text())]
    assert done == ["good-moving.gif", "good-panorama.png", "good-pixel.png", "good0.png", "good1.png"]
    assert len(list(out.glob("*.png"))) == 5
    lines = result.stderr.splitlines()
    for words in (
        f"{missing} does not exist.",
        f"The folder {empty} and its folders hold no image",
        "No file matches no/*.png.",
        f"{'a' * 300} cannot be read (File name too long).",
        "truncated.jpg cannot be decoded (image file is truncated",
        "text.jpg cannot be opened (the image format is not recognised)",
        "good-moving.gif: has several frames or pages; only the first was used.",
        "good-panorama.png: is larger than every bucket",
        "good-pixel.png: is only a few pixels large",
    ):
        assert len([line for line in lines if words in line]) == 1, words
    assert "found in 5 images; 2 could not be read; see" in result.stdout
    before = {file: file.read_bytes() for file in out.iterdir()}
    result = run("predict", workdir, odd_files / "text.jpg", "--out", out)
    assert result.exit_code == 1
    assert "0 objects found in 0 images; 1 could not be read; nothing is written" in result.stdout
    assert run("predict", workdir, missing, "--out", out).exit_code == 1
    assert {file: file.read_bytes() for file in out.iterdir()} == before
    assert run("predict", workdir, odd_files / "good-moving.gif", "--out", out).exit_code == 0


def test_an_interrupted_predict_keeps_its_results(workdir, tmp_path, rng, monkeypatch):
    files, stream = _save_shapes(tmp_path / "photos", rng, 4), Detector.stream

    def interrupted(*arguments, **options):
        answers = stream(*arguments, **options)
        yield from (next(answers), next(answers))
        raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "stream", interrupted)
    result = run("predict", workdir, *files, "--out", tmp_path / "out", "--no-pictures")
    assert result.exit_code == 130
    assert "Stopped before the other 2 images." in result.stderr
    entries = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(entries) == 2
    assert all(entry.keys() == {"file", "width", "height", "detections"} for entry in entries)


def test_predict_never_overwrites_its_images_and_can_omit_pictures(workdir, tmp_path, rng):
    folder = tmp_path / "photos"
    (file,) = _save_shapes(folder, rng, 1)
    before = file.read_bytes()
    result = run("predict", workdir, folder, "--out", folder)
    assert result.exit_code == 1
    assert "give another --out" in result.stderr
    assert run("predict", workdir, folder, "--out", folder, "--no-pictures").exit_code == 0
    assert file.read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {file.name, "predictions.json"}
    other = tmp_path / "other"
    other.mkdir()
    (other / file.name).write_bytes(b"somebody's own")
    for _ in range(2):  # the second run overwrites the pictures of the first
        assert run("predict", workdir, folder, "--out", other).exit_code == 0
        assert {path.name for path in other.iterdir()} == {file.name, f"{file.stem}-2.png", "predictions.json"}
    assert (other / file.name).read_bytes() == b"somebody's own"


def test_a_checkpoint_without_class_names_is_read(workdir, tmp_path):
    model, config = load_model(workdir)
    checkpoints = Checkpoints(tmp_path / "old" / "checkpoints", keep=1)
    checkpoints.save(1, {"params": nnx.as_pure(nnx.state(model))}, config)
    checkpoints.close()
    assert Detector.from_checkpoint(tmp_path / "old").class_names == {}


def test_train_ends_in_one_sentence_on_wrong_input(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    result = run("train", "--config", tmp_path / "config.py", "--config.loss.matcher=best")
    assert result.exit_code == 1
    assert "loss.matcher='best'" in result.stderr
    assert "--config shapes" in run("train").stderr
