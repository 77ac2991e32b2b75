import json

import numpy as np
import pytest
from PIL import Image

from detr_jax.config import Config, DataConfig, ShapesConfig
from detr_jax.data import ShapesDataset, open_source
from tests.cli.command import run


@pytest.fixture
def folder(tmp_path, rng):
    path = tmp_path / "shapes"
    assert run("make-shapes", path, "--train", 9, "--val", 5, "--seed", rng.integers(2**31)).exit_code == 0
    return path


@pytest.mark.parametrize(("suffix", "tolerance"), [("png", 0), ("jpg", 6)])
def test_make_shapes_writes_the_drawn_images_and_objects(tmp_path, rng, suffix, tolerance):
    seed = int(rng.integers(2**31))
    options = ("--train", 7, "--val", 3, "--seed", seed, "--min-size", 20, "--max-size", 90, "--max-objects", 2)
    assert run("make-shapes", tmp_path / "new", *options, "--format", suffix).exit_code == 0
    shapes = ShapesConfig(train_images=7, val_images=3, seed=seed, min_size=20, max_size=90, max_objects=2)
    config = Config(data=DataConfig(root=str(tmp_path / "new"), allow_empty=True))
    for split in ("train", "val"):
        drawn, written = ShapesDataset(shapes, split), open_source(config, split)
        assert len(drawn) == len(written)
        assert written.categories == drawn.categories
        for index in range(len(drawn)):
            sample = written[index]
            image, objects = sample.image, sample.objects
            assert np.abs(image.astype(int) - drawn[index].image).mean() <= tolerance
            np.testing.assert_array_equal(objects.boxes, drawn.objects(index).boxes)
            np.testing.assert_array_equal(objects.labels, drawn.objects(index).labels)
        areas = [[one["area"] for one in source.ground_truth()["annotations"]] for source in (drawn, written)]
        assert areas[0] == areas[1]


def test_make_shapes_does_not_write_into_an_existing_folder(folder):
    result = run("make-shapes", folder)
    assert result.exit_code == 1
    assert "exists already" in result.output
    result = run("make-shapes", folder / "x", "--min-size", 9, "--max-size", 3)
    assert result.exit_code == 1
    assert "--min-size=9" in result.output


def test_correct_data_pass_and_samples_are_drawn(folder, tmp_path):
    result = run("check-data", "--dataset", "coco", "--root", folder, "--picture", tmp_path / "samples.png")
    assert result.exit_code == 0, result.output
    assert "train: 9 images" in result.output
    assert "val: 5 images" in result.output
    assert result.output.count("circle") == 2  # in the class table, once per split
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width > 6 * 320
        assert picture.height > 3 * 320


def test_errors_are_reported_and_the_exit_code_is_1(folder):
    (folder / "train2017" / "000003.png").write_text("no image")
    result = run("check-data", "--dataset", "coco", "--root", folder, "--picture", folder / "samples.png")
    assert result.exit_code == 1
    assert "files that are not images" in result.output
    assert "000003.png" in result.output
    assert "val: 5 images" in result.output
    assert run("check-data", "--dataset", "coco", "--root", folder, "--split", "val").exit_code == 0


def test_the_other_split_is_checked_if_an_annotation_file_cannot_be_read(folder):
    path = folder / "annotations/instances_train2017.json"
    path.write_text(path.read_text()[:-50])
    result = run("check-data", "--dataset", "coco", "--root", folder)
    assert result.exit_code == 1
    assert "instances_train2017.json cannot be read as JSON" in result.output
    assert "val: 5 images" in result.output


def test_a_configuration_file_and_flags_work_as_in_training(folder):
    config = ("--config", "configs/shapes.py", "--config.data.dataset=coco", f"--config.data.root={folder}")
    result = run("check-data", *config, "--config.model.num_queries=1")
    assert result.exit_code == 0
    assert "more objects than the 1 queries" in result.output
    result = run("check-data", *config, "--config.model.num_classes=2")
    assert result.exit_code == 1
    assert "model.num_classes=2" in result.output
    result = run("check-data", "--root", folder, "--config.model.num_classes=2")
    assert result.exit_code == 1
    assert "model.num_classes=2" in result.output
    result = run(
        "check-data", "--config", "configs/shapes.py", "--config.data.sources.shapes.val_images=4", "--split", "val"
    )
    assert "val: 4 images" in result.output


def test_a_configuration_without_known_classes_and_queries_can_be_checked(folder):
    result = run("check-data", "--config", "configs/finetune.py", "--root", folder, "--split", "train")
    assert result.exit_code == 0, result.output
    assert "model.num_classes=3 or more" in result.output
    assert "more objects than" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "imagenet"], "data.dataset='imagenet'"),
        ([], "data.root is empty"),
        (["--dataset", "yolo"], "data.root is empty"),
        (["here", "there"], "unexpected extra argument (there)"),
        (["here", "--root", "there"], "Give the data set once"),
        (["--dataset", "tfds"], "data.sources.tfds.name"),
        (["--dataset", "voc", "--root", "nowhere"], "data.root=nowhere"),
        (["--bogus"], "--bogus"),
        (["--config.data.rot=x"], "data.root"),
        (["--config.model.num_queries=many"], "many"),
        (["--config", "README.md"], "README.md"),
    ],
)
def test_wrong_arguments_end_in_one_sentence(arguments, words):
    result = run("check-data", *arguments)
    assert result.exit_code in (1, 2)
    assert words in result.output
    assert "Traceback" not in result.output


def test_the_error_names_the_kind_of_the_folder_if_another_kind_is_given(folder):
    result = run("check-data", "--dataset", "voc", folder)
    assert result.exit_code == 1
    assert "It looks like coco: set data.dataset=coco." in result.output


def test_make_shapes_writes_an_instances_json(folder):
    content = json.loads((folder / "annotations/instances_val2017.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [f"{index:06d}.png" for index in range(5)]
    assert {one["category_id"] for one in content["annotations"]} <= {one["id"] for one in content["categories"]}
