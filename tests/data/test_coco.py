import json

import numpy as np
import pytest
from PIL import Image

from detr_jax.config import CocoFiles, Config, DataConfig
from detr_jax.data import CocoDataset, DataError, open_source


@pytest.fixture
def content():
    """Two images of 30 x 40 pixels (height x width): one with a box and a crowd, one without objects."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 30, "width": 40},
            {"id": 3, "file_name": "b.png", "height": 30, "width": 40},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 18, "bbox": [4, 5, 10, 20], "area": 200, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
    }


@pytest.fixture
def write(tmp_path, content, rng):
    """A function that writes the content as a data set and opens it."""
    pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(tmp_path / "images" / name)

    def open_dataset():
        (tmp_path / "instances.json").write_text(json.dumps(content))
        return CocoDataset(tmp_path / "images", tmp_path / "instances.json")

    open_dataset.pixels = pixels
    return open_dataset


def test_boxes_become_corners_crowds_are_dropped_and_empty_images_stay(write):
    dataset = write()
    sample = dataset[0]
    image, objects = sample.image, sample.objects
    np.testing.assert_array_equal(image, write.pixels)
    np.testing.assert_array_equal(objects.boxes, [[4, 5, 14, 25]])
    np.testing.assert_array_equal(objects.labels, [18])
    assert len(dataset) == 2
    assert len(dataset[1].objects.labels) == 0
    assert dataset.categories == {1: "person", 18: "dog"}
    assert dataset.sizes.tolist() == [[30, 40], [30, 40]]
    assert len(dataset.ground_truth()["annotations"]) == 2
    assert not dataset.faults.counts


def test_boxes_beyond_their_image_are_clipped_or_dropped_and_counted(write, content):
    for i, box in enumerate(([5, 5, 0, 3], [50, 5, 4, 4], [30, 20, 20, 20], [38.5, 5, 1.9, 3], [5, 5, -2, 3])):
        content["annotations"].append(
            {"id": 100 + i, "image_id": 3, "category_id": 1, "bbox": box, "area": 9, "iscrowd": 0}
        )
    dataset = write()
    np.testing.assert_allclose(dataset[1].objects.boxes, [[30, 20, 40, 30], [38.5, 5, 40, 8]])
    sentences = "\n".join(dataset.faults.sentences())
    assert sorted(dataset.faults.counts.values()) == [1, 1, 2]
    assert "annotation 100 of image 3" in sentences
    assert "annotation 101 of image 3" in sentences
    assert "annotation 102 of image 3" in sentences
    assert "annotation 103" not in sentences


def _set(path, value):
    def change(content):
        node = content
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


def _delete(*path):
    def change(content):
        node = content
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(["annotations", 0, "category_id"], 5), ["instances.json", "annotation 1", "category_id=5"]),
        (_set(["annotations", 0, "image_id"], 5), ["instances.json", "annotation 1", "image 5"]),
        (_set(["annotations", 0, "bbox"], [1, 2, 3]), ["annotation 1", "bbox=[1, 2, 3]", "four finite numbers"]),
        (_set(["annotations", 0, "bbox"], [1, 2, float("nan"), 3]), ["annotation 1", "four finite numbers"]),
        (_set(["annotations", 0, "bbox"], None), ["annotation 1", "bbox=None"]),
        (_set(["annotations", 0], 3), ["instances.json", "3"]),
        (_set(["images", 0, "height"], 0), ["image 7", "height=0"]),
        (_set(["images", 0, "id"], 3), ["two images", "3"]),
        (_set(["images", 0, "id"], "x"), ["id='x'", "whole number"]),
        (_set(["images"], []), ["instances.json", "no image"]),
        (_set(["images", 0, "id"], -7), ["-7", "at least 0"]),
        (_set(["annotations", 1, "id"], 1), ["two annotations", "1"]),
        (_delete("annotations", 0, "id"), ["annotation without id", "id=None"]),
        (_set(["annotations", 0, "area"], "big"), ["annotation 1", "area='big'"]),
        (_set(["annotations", 0, "iscrowd"], 2), ["annotation 1", "iscrowd=2"]),
        (_set(["categories", 0, "id"], 18), ["two categories", "18"]),
        (_delete("images", 0, "file_name"), ["image 7", "file_name"]),
        (_delete("categories"), ["instances.json", "categories"]),
    ],
)
def test_wrong_annotations_are_refused_with_one_sentence(write, content, change, words):
    change(content)
    with pytest.raises(DataError) as error:
        write()
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '"text"', "\x00\xff"])
def test_a_file_that_is_not_an_instances_json_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json"):
        CocoDataset(tmp_path, tmp_path / "x.json")


def test_missing_names_and_areas_are_filled_in_for_the_evaluation(write, content):
    del content["categories"][0]["name"], content["annotations"][0]["area"]
    dataset = write()
    truth = dataset.ground_truth()
    assert [category["name"] for category in truth["categories"]] == ["1", "dog"]
    assert truth["annotations"][0]["area"] == 200
    assert "annotation 1" in dataset.faults.sentences()[0]


def test_errors_name_the_missing_folder_and_files(write, tmp_path):
    dataset = write()
    with pytest.raises(DataError, match="nowhere"):
        CocoDataset(tmp_path / "nowhere", tmp_path / "instances.json")
    with pytest.raises(DataError, match=r"none\.json"):
        CocoDataset(tmp_path / "images", tmp_path / "none.json")
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png does not exist"):
        dataset[0]


def test_errors_name_undecodable_and_truncated_images(write, tmp_path, rng):
    dataset = write()
    path = tmp_path / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        dataset[0]
    path.write_text("not an image")
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        dataset[0]


def test_an_image_of_another_size_than_annotated_is_refused(write, tmp_path):
    dataset = write()
    Image.new("RGB", (40, 31)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.png has 31 x 40 .* image 7 of .*instances\.json says 30 x 40"):
        dataset[0]


def test_open_source_follows_the_official_layout_and_checks_the_classes(write, tmp_path):
    write()
    config = Config(
        data=DataConfig(
            root=str(tmp_path),
            sources={"coco": CocoFiles(train_images="images", train_annotations=str(tmp_path / "instances.json"))},
        )
    )
    assert len(open_source(config, "train")) == 2
    with pytest.raises(DataError, match=r"has no split to evaluate on: set --config\.data\.val_share"):
        open_source(config, "val")
    config.data.sources["coco"].val_annotations = "other.json"
    with pytest.raises(DataError, match=r"other\.json does not exist: correct data\.sources\.coco\.val_annotations"):
        open_source(config, "val")
    config.data.sources["coco"].val_annotations = ""
    config.model.num_classes = 18
    with pytest.raises(DataError, match=r"category 18 \('dog'\).*num_classes=18.*19"):
        open_source(config, "train")
    config.data.root = str(tmp_path / "missing")
    with pytest.raises(DataError, match=r"data\.root=.*missing"):
        open_source(config, "train")
