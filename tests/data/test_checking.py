"""The report of a data set with every kind of fault lists each fault with its number."""

import json

import numpy as np
import pytest
from PIL import Image

from detr_jax.config import ShapesConfig
from detr_jax.data import CocoDataset, ShapesDataset
from detr_jax.data.checking import check_source
from detr_jax.data.shapes import write_coco

QUERIES = 3


@pytest.fixture
def folder(tmp_path, rng):
    config = ShapesConfig(train_images=30, val_images=1, max_objects=4, seed=int(rng.integers(2**31)))
    write_coco(config, tmp_path / "shapes")
    return tmp_path / "shapes"


def _open(folder):
    return CocoDataset(folder / "train2017", folder / "annotations/instances_train2017.json", strict=False)


def _change(folder, change):
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_correct_data_set_has_no_faults_and_its_numbers_are_right(folder):
    source = _open(folder)
    report = check_source(source, QUERIES, threads=2)
    truth = source.ground_truth()
    per_image = [sum(one["image_id"] == image_id for one in truth["annotations"]) for image_id in source.image_ids]
    assert not report.faults.errors
    assert not report.faults.counts
    assert report.objects.tolist() == per_image
    assert sum(row.objects for row in report.classes) == sum(per_image) == len(report.areas)
    np.testing.assert_allclose(
        sorted(report.areas), sorted(one["bbox"][2] * one["bbox"][3] for one in truth["annotations"])
    )
    assert sorted(report.notes.counts.values()) == sorted(
        number for number in (per_image.count(0), sum(number > QUERIES for number in per_image)) if number
    )
    text = "\n".join(report.lines())
    assert f"30 images, {sum(per_image)} objects, 3 classes" in text
    assert "error" not in text
    assert "images without objects" in text or 0 not in per_image


def test_the_histogram_counts_every_image_once(folder):
    report = check_source(_open(folder), QUERIES)
    lines = report.lines()
    start = lines.index("sizes, height down and width across, in pixels:") + 2
    rows = [line.split() for line in lines[start : lines.index("classes (label, name, objects):")]]
    assert sum(int(number) for row in rows for number in row[1:]) == 30
    for row in rows:
        low, high = map(int, row[0].split("-"))
        assert sum(map(int, row[1:])) == ((report.sizes[:, 0] >= low) & (report.sizes[:, 0] <= high)).sum()


def test_every_fault_is_counted_with_an_example_and_none_stops_the_check(folder):
    images = folder / "train2017"

    def damage(content):
        good = {"area": 9, "iscrowd": 0, "category_id": 0}
        content["images"][7]["height"] += 1
        content["images"] += [{**content["images"][8]}, {"id": 70}, "odd"]
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 10]
        content["annotations"] += [
            {**good, "id": 9001, "image_id": 10, "bbox": [1, 1, 0, 5]},
            {**good, "id": 9002, "image_id": 10, "bbox": [100, 1, 5, 5]},
            {**good, "id": 9003, "image_id": 10, "bbox": [-5, 1, 9, 5]},
            {**good, "id": 9004, "image_id": 10, "bbox": [1, 1, float("nan"), 5]},
            {**good, "id": 9005, "image_id": 10, "bbox": [1, 1, 5, 5], "category_id": 9},
            {**good, "id": 9005, "image_id": 10, "bbox": [1, 1, 5, 5]},
            {**good, "id": 9006, "image_id": 99, "bbox": [1, 1, 5, 5]},
            {**good, "id": 9007, "image_id": 70, "bbox": [1, 1, 5, 5]},  # its image is refused and already counted
        ]
        content["categories"].append({"id": 0, "name": "again"})

    _change(folder, damage)
    (images / "000001.png").unlink()
    (images / "000002.png").write_bytes((images / "000002.png").read_bytes()[:-200])
    (images / "000003.png").write_text("no image")
    (images / "000004.png").write_bytes(b"")
    Image.new("RGB", (5, 6)).save(images / "000005.png")
    report = check_source(_open(folder), QUERIES)
    assert dict(report.faults.errors) == {
        "duplicate category ids": 1,
        "duplicate image ids": 1,
        "images whose file_name is missing or of the wrong type": 1,
        "images that are not JSON objects": 1,
        "boxes that are not four finite numbers": 1,
        "annotations of an unknown category": 1,
        "duplicate annotation ids": 1,
        "annotations of an image that is not listed": 1,
        "images that are missing": 1,
        "images that are truncated or damaged": 1,
        "files that are not images, or images of an unknown format": 2,
        "images of another size than annotated": 2,
    }
    assert dict(report.faults.counts) == {
        "boxes without area were dropped from training; COCO's official evaluation keeps them": 1,
        "boxes entirely outside of their image were dropped from training; COCO's official evaluation keeps them": 1,
        "boxes that reach outside of their image were clipped": 1,
    }
    text = "\n".join(report.lines())
    for name in (
        "annotation 9004",
        "annotation 9001",
        "000001.png",
        "000002.png",
        "000003.png",
        "000005.png",
        "6 x 5",
    ):
        assert name in text
    assert report.objects[10] == 1
    assert len(report.sizes) == 30


def test_surplus_objects_and_empty_images_are_reported(folder):
    def crowd(content):
        content["annotations"] = [
            {"id": i + 1, "image_id": 4, "category_id": 1, "bbox": [i, i, 4, 4], "area": 16, "iscrowd": 0}
            for i in range(QUERIES + 2)
        ]

    _change(folder, crowd)
    report = check_source(_open(folder), QUERIES)
    (empty, number), (surplus, one) = sorted(report.notes.counts.items(), key=lambda item: -item[1])
    assert empty == "images without objects"
    assert number == 29
    assert f"than the {QUERIES} queries" in surplus
    assert one == 1
    assert f"000004.png has {QUERIES + 2}" in "".join(report.notes.sentences())


def test_any_source_can_be_checked(rng):
    source = ShapesDataset(ShapesConfig(train_images=5, seed=int(rng.integers(2**31))), "train")
    seen = []

    def progress(indices):
        for index in indices:
            seen.append(index)
            yield index

    report = check_source(source, QUERIES, progress=progress)
    assert seen == list(range(5))
    assert len(report.sizes) == 5
    assert not report.faults.errors
