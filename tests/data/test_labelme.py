"""Labelme folders against the written shapes."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from detr_jax.config import Config, DataConfig
from detr_jax.data import DataError, find_layout, open_source, open_splits
from detr_jax.data.labelme import LabelmeDataset

NAMES = ("Katze ü", "dog", "traffic light")


def _shape(rng, height, width):
    """A shape of a random kind and its bounding box xyxy in pixels."""
    x, y = rng.uniform(12, [width - 12, height - 12])
    kind = rng.choice(["rectangle", "polygon", "circle"])
    if kind == "circle":
        angle, radius = rng.uniform(0, 2 * math.pi), rng.uniform(2, 10)
        points = [[x, y], [x + radius * math.cos(angle), y + radius * math.sin(angle)]]
        box = [x - radius, y - radius, x + radius, y + radius]
    else:
        points = (np.array([x, y]) + rng.uniform(-10, 10, (2 if kind == "rectangle" else 7, 2))).tolist()
        box = [*np.min(points, axis=0), *np.max(points, axis=0)]
    label = str(rng.choice(NAMES))
    return {"label": label, "points": points, "group_id": None, "shape_type": str(kind), "flags": {}}, (label, box)


def _write(rng, folder, number, *, image_folder=None, written=lambda name: name):
    """Writes images with JSON files. Returns the objects of each image by its name."""
    image_folder = image_folder or folder
    truth = {}
    for folder_ in (folder, image_folder):
        folder_.mkdir(parents=True, exist_ok=True)
    for k in range(number):
        height, width = rng.integers(30, 90, 2).tolist()
        name = f"photo {k}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(image_folder / name)
        shapes = [_shape(rng, height, width) for _ in range(rng.integers(1, 4))]
        content = {
            "version": "5.4.1",
            "flags": {},
            "shapes": [shape for shape, _ in shapes],
            "imagePath": written(name),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        (folder / f"photo {k}.json").write_text(json.dumps(content), encoding="utf-8")
        truth[name] = [found for _, found in shapes]
    return truth


def _check(source, truth):
    assert len(source) == len(truth)
    names = sorted({label for objects in truth.values() for label, _ in objects})
    for index in range(len(source)):
        sample = source[index]
        image = sample.image
        boxes, labels = sample.objects.boxes, sample.objects.labels
        wanted = truth[source.file_name(index).rsplit("/", 1)[-1]]
        assert image.shape[:2] == tuple(source.sizes[index])
        assert [source.categories[label] for label in labels.tolist()] == [label for label, _ in wanted]
        np.testing.assert_allclose(boxes, [box for _, box in wanted], rtol=1e-6)
    assert set(names) <= set(source.categories.values())


def test_a_folder_of_images_and_json_files_is_recognised_and_read(tmp_path, rng):
    truth = _write(rng, tmp_path, 9)
    config = Config(data=DataConfig(root=str(tmp_path)))
    config.model.num_classes = 0
    assert find_layout(config.data).kind == "labelme"
    _check(open_source(config, "val"), truth)
    config.data.val_share = 0.4
    train, val = open_splits(config)
    assert len(train) + len(val) == 9
    assert train.categories == val.categories


def test_json_files_in_a_separate_folder_are_matched_by_their_image_path(tmp_path, rng):
    truth = _write(
        rng, tmp_path / "labels", 5, image_folder=tmp_path / "images", written=lambda name: f"..\\images\\{name}"
    )
    _check(LabelmeDataset(tmp_path, "all"), truth)


def test_splits_are_folders_and_share_the_classes(tmp_path, rng):
    truth = {split: _write(rng, tmp_path / split, 6) for split in ("train", "valid")}
    config = Config(data=DataConfig(root=str(tmp_path)))
    config.model.num_classes = 0
    train, val = open_splits(config)
    _check(train, truth["train"])
    _check(val, truth["valid"])
    assert train.categories == val.categories


def test_unused_shapes_are_counted_and_damaged_files_are_errors(tmp_path, rng):
    _write(rng, tmp_path, 3)
    (tmp_path / "photo 0.png").unlink()
    (tmp_path / "photo 1.json").unlink()
    content = json.loads((tmp_path / "photo 2.json").read_text())
    content["shapes"].append({"label": "dog", "points": [[1, 2]], "shape_type": "point"})
    (tmp_path / "photo 2.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text('{"a": 1}')
    source = LabelmeDataset(tmp_path, "all")
    assert sorted(source.faults.counts.values()) == [1, 1]
    assert source.faults.notes == {"images have no JSON file, so they have no objects": 1}
    content["shapes"][0]["points"] = [["x", 2]]
    (tmp_path / "photo 2.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"photo 2\.json is not a labelme file"):
        LabelmeDataset(tmp_path, "all")
