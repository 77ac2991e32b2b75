"""The readers of all formats agree on the same data."""

import pickle

import numpy as np
import pytest

from detr_jax.config import Config, DataConfig, ShapesConfig, TfdsConfig
from detr_jax.data import ShapesDataset, open_source
from detr_jax.data.shapes import write_coco
from tests.data import dataset_writers

NAMES = ["circle", "square", "triangle"]


@pytest.fixture
def shapes(rng):
    return ShapesConfig(train_images=12, val_images=8, min_size=30, max_size=60, seed=int(rng.integers(2**31)))


@pytest.fixture
def coco(tmp_path, shapes):
    write_coco(shapes, tmp_path / "coco")
    return tmp_path / "coco"


def _yolo(coco, root):
    dataset_writers.write_yolo(coco, root, data=f"path: .\ntrain: images/train\nval: images/val\nnames: {NAMES}\n")
    return DataConfig(dataset="yolo", root=str(root))


def _voc(coco, root):
    dataset_writers.write_voc(coco, root, names=NAMES)
    return DataConfig(dataset="voc", root=str(root))


def _tfds(coco, root):
    dataset_writers.TinyDetection(coco=coco, names=NAMES, data_dir=root).download_and_prepare()
    return DataConfig(dataset="tfds", root=str(root), sources={"tfds": TfdsConfig(name="tiny_detection")})


def _coco(coco, _):
    return DataConfig(dataset="coco", root=str(coco))


@pytest.mark.parametrize("convert", [_coco, _yolo, _voc, _tfds])
def test_images_boxes_and_labels_are_read_as_they_were_drawn(coco, shapes, tmp_path, convert):
    config = Config(data=convert(coco, tmp_path / "converted"))
    for split in ("train", "val"):
        drawn = ShapesDataset(shapes, split)
        source = pickle.loads(pickle.dumps(open_source(config, split)))  # worker processes get a pickle
        assert source.categories == drawn.categories
        assert not source.faults.counts
        assert source.max_objects == max(len(drawn.objects(index).labels) for index in range(len(drawn)))
        by_pixels = {drawn[index].image.tobytes(): index for index in range(len(drawn))}
        assert len(source) == len(drawn) == len(set(source.image_ids))
        for index in range(len(source)):
            sample = source[index]
            image = sample.image
            boxes, labels = sample.objects.boxes, sample.objects.labels
            expected = by_pixels.pop(image.tobytes())
            np.testing.assert_array_equal(source.sizes[index], drawn.sizes[expected])
            np.testing.assert_allclose(boxes, drawn.objects(expected).boxes, atol=1e-3)
            np.testing.assert_array_equal(labels, drawn.objects(expected).labels)
            assert boxes.dtype == np.float32
            assert labels.dtype == np.int32
        assert not by_pixels


@pytest.mark.parametrize("convert", [_coco, _yolo, _voc, _tfds])
def test_a_root_relative_to_the_working_folder_is_read(coco, tmp_path, monkeypatch, convert):
    data = convert(coco, tmp_path / "converted")
    monkeypatch.chdir(tmp_path)
    data.root = "coco" if convert is _coco else "converted"
    source = open_source(Config(data=data), "train")
    assert source[len(source) - 1].image.shape[:2] == tuple(source.sizes[-1])


@pytest.mark.parametrize("convert", [_coco, _yolo, _voc, _tfds])
def test_the_evaluation_gets_the_same_ground_truth(coco, shapes, tmp_path, convert):
    source = open_source(Config(data=convert(coco, tmp_path / "converted")), "val")
    truth = source.ground_truth()
    assert [image["id"] for image in truth["images"]] == list(source.image_ids)
    assert [one["id"] for one in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    boxes = {image_id: [] for image_id in source.image_ids}
    for one in truth["annotations"]:
        boxes[one["image_id"]].append(one["bbox"])
        if convert in (_coco, _tfds):
            assert one["area"] < one["bbox"][2] * one["bbox"][3] or one["category_id"] == NAMES.index("square")
    for index, image_id in enumerate(source.image_ids):
        x, y, w, h = np.array(boxes[image_id]).reshape(-1, 4).T
        np.testing.assert_allclose(np.stack([x, y, x + w, y + h], 1), source.objects(index).boxes, atol=1e-3)
