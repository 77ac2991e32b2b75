import json
import shutil
import sys
import types

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image
from tensorflow_datasets.object_detection import coco as tfds_coco
from tensorflow_datasets.object_detection import voc as tfds_voc

from detr_jax.config import ShapesConfig
from detr_jax.data import DataError
from detr_jax.data.coco_classes import COCO_CLASSES
from detr_jax.data.shapes import write_coco
from detr_jax.data.tfds import TfdsDataset
from detr_jax.data.voc import VOC_CLASSES
from tests.data import dataset_writers

NAMES = ["circle", "square", "triangle"]


@pytest.fixture
def coco(tmp_path, rng):
    config = ShapesConfig(train_images=6, val_images=6, min_size=30, max_size=50, seed=int(rng.integers(2**31)))
    write_coco(config, tmp_path / "coco")
    return tmp_path / "coco"


@pytest.fixture
def prepared(coco, tmp_path):
    dataset_writers.TinyDetection(coco=coco, names=NAMES, data_dir=tmp_path / "tfds").download_and_prepare()
    return tmp_path / "tfds"


def _instances(rng, labels, images=5):
    """An instances form of random boxes, at least one per label, with fractional areas."""
    sizes = rng.integers(40, 90, (images, 2)).tolist()
    form = {"images": [], "annotations": [], "categories": []}
    for index, (height, width) in enumerate(sizes):
        form["images"].append({"id": 100 - index, "file_name": f"{index:03d}.jpg", "height": height, "width": width})
    for label in rng.permutation(np.repeat(labels, 2)).tolist():
        image = form["images"][rng.integers(images)]
        x, y = rng.uniform(0, image["width"] - 12), rng.uniform(0, image["height"] - 12)
        w, h = rng.uniform(2, 10, 2).tolist()
        form["annotations"].append(
            {
                "id": len(form["annotations"]) + 1,
                "image_id": image["id"],
                "category_id": label,
                "bbox": [x, y, w, h],
                "area": w * h * 0.7,
                "iscrowd": int(rng.random() < 0.2),
            }
        )
    return form


@pytest.fixture
def official(tmp_path, rng, monkeypatch):
    """coco/2017, prepared by TFDS's own builder from an instances JSON with the official categories, and this JSON."""
    content = _instances(rng, list(COCO_CLASSES))
    content["categories"] = [{"id": label, "name": name} for label, name in COCO_CLASSES.items()]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    (tmp_path / "val2017").mkdir()
    for image in content["images"]:
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "val2017" / image["file_name"])

    def splits(self, _):
        return {"validation": self._generate_examples(str(tmp_path), str(tmp_path), "val2017", "bboxes", None)}

    monkeypatch.setattr(
        tfds_coco, "tf", types.SimpleNamespace(int64=np.int64)
    )  # the builder needs TensorFlow only for this
    monkeypatch.setattr(tfds_coco.Coco, "_split_generators", splits)
    builder = tfds_coco.Coco(config="2017", data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare()
    return tmp_path / "tfds", content


def _by_image(content):
    found = {image["id"]: [] for image in content["images"]}
    for one in content["annotations"]:
        found[one["image_id"]].append((one["category_id"], one["iscrowd"], *np.round(one["bbox"], 3).tolist()))
    return {image_id: sorted(items) for image_id, items in found.items()}


def test_labels_of_coco_are_the_ids_of_the_official_annotations(official):
    root, content = official
    source = TfdsDataset(root, "coco/2017", "validation")
    assert source.categories == COCO_CLASSES
    assert _by_image(source.ground_truth()).keys() == _by_image(content).keys()
    for image_id, expected in _by_image(content).items():
        found = _by_image(source.ground_truth())[image_id]
        assert [one[:2] for one in found] == [one[:2] for one in expected]
        np.testing.assert_allclose(found, expected, atol=0.01)
        trained = source.objects(source.image_ids.tolist().index(image_id)).labels
        assert sorted(trained) == [label for label, crowd, *_ in expected if not crowd]


def test_coco_can_be_evaluated_against_its_official_annotations(official, tmp_path):
    root, content = official
    plain = TfdsDataset(root, "coco/2017", "validation").ground_truth()["annotations"]
    assert all(one["area"] == int(one["area"]) for one in plain)
    path = tmp_path / "annotations" / "instances_val2017.json"
    source = TfdsDataset(root, "coco/2017", "validation[:60%]", annotation_file=path)
    assert len(source) == 3
    annotations = source.ground_truth()["annotations"]
    expected = [one for one in content["annotations"] if one["image_id"] in source.image_ids]
    assert [one["area"] for one in annotations] == [one["area"] for one in expected]
    content["images"] = [image for image in content["images"] if image["id"] != source.image_ids[0]]
    content["annotations"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"does not list image {source.image_ids[0]} of coco/2017"):
        TfdsDataset(root, "coco/2017", "validation[:60%]", annotation_file=path)
    path.write_text(json.dumps({**content, "images": [], "categories": []}))
    with pytest.raises(DataError, match="no image is listed"):
        TfdsDataset(root, "coco/2017", "validation", annotation_file=path)


def test_voc_counts_pixels_from_1_and_drops_difficult_objects(coco, tmp_path, monkeypatch):
    names = ["aeroplane", "sofa", "tvmonitor"]
    devkit = tmp_path / "VOCdevkit" / "VOC2007"
    truth = dataset_writers.read_coco(coco, "train")
    difficult = {one["id"] for one in truth["annotations"][::3]}
    dataset_writers.write_voc(coco, devkit, names=names, difficult=difficult)
    for path in devkit.glob("Annotations/*.xml"):  # the builder needs more fields of an object than detection
        path.write_text(path.read_text().replace("<difficult>", "<pose>Left</pose><truncated>0</truncated><difficult>"))
    for path in devkit.glob("JPEGImages/*.png"):
        path.rename(path.with_suffix(".jpg"))
    gfile = types.SimpleNamespace(GFile=open)
    monkeypatch.setattr(tfds_voc, "tf", types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile)))
    monkeypatch.setattr(
        tfds_voc.Voc, "_split_generators", lambda self, _: {"train": self._generate_examples(str(tmp_path), "train")}
    )
    tfds_voc.Voc(config="2007", data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()

    source = TfdsDataset(tmp_path / "tfds", "voc/2007", "train")
    assert source.categories == dict(enumerate(VOC_CLASSES))
    index_of = {image["file_name"]: index for index, image in enumerate(source.ground_truth()["images"])}
    for image, annotations in dataset_writers.objects_of(truth):
        objects = source.objects(index_of[f"train_{image['file_name'].replace('.png', '.jpg')}"])
        boxes, labels = objects.boxes, objects.labels
        kept = [one for one in annotations if one["id"] not in difficult]
        assert [source.categories[label] for label in labels] == [names[one["category_id"]] for one in kept]
        expected = np.array([one["bbox"] for one in kept]).reshape(-1, 4)
        np.testing.assert_allclose(boxes[:, :2], expected[:, :2], atol=1e-3)
        np.testing.assert_allclose(boxes[:, 2:], expected[:, :2] + expected[:, 2:], atol=1e-3)
    assert sum(one["iscrowd"] for one in source.ground_truth()["annotations"]) == len(difficult)


def test_crowds_are_kept_only_for_the_evaluation(coco, tmp_path):
    content = dataset_writers.read_coco(coco, "val")
    crowd = {one["id"] for one in content["annotations"][::2]}
    dataset_writers.TinyDetection(
        coco=coco, names=NAMES, crowd=crowd, data_dir=tmp_path / "tfds"
    ).download_and_prepare()
    source = TfdsDataset(tmp_path / "tfds", "tiny_detection:1.0.0", "validation")
    truth = source.ground_truth()["annotations"]
    assert sum(one["iscrowd"] for one in truth) == len(crowd)
    assert sum(len(source.objects(index).labels) for index in range(len(source))) == len(truth) - len(crowd)
    assert sorted(one["area"] for one in truth) == sorted(one["area"] for one in content["annotations"])


def test_reading_needs_no_tensorflow(prepared):
    TfdsDataset(prepared, "tiny_detection", "train")[0]
    TfdsDataset(prepared / "tiny_detection" / "1.0.0", "", "train[50%:]")[0]
    assert "tensorflow" not in sys.modules


def test_errors_name_what_cannot_be_read_and_the_remedy(prepared, coco, tmp_path):
    with pytest.raises(
        DataError, match=r"No data set coco/2017 is prepared .*tfds build coco/2017 .*detr_jax\[tensorflow\]"
    ):
        TfdsDataset(prepared, "coco/2017", "train")
    with pytest.raises(DataError, match=r"no split 'val' \(it has train, validation\)"):
        TfdsDataset(prepared, "tiny_detection", "val")
    version = prepared / "tiny_detection" / "1.0.0"
    for configuration in ("one", "two"):
        shutil.copytree(version, prepared / "several" / configuration / "1.0.0")
    with pytest.raises(DataError, match="set it to one of several/one, several/two"):
        TfdsDataset(prepared, "several", "train")
    info = version / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match=r"prepared as tfrecord.*out_file_format=array_record"):
        TfdsDataset(prepared, "tiny_detection", "train")


class TinyLabels(tensorflow_datasets.core.GeneratorBasedBuilder):
    """A TFDS data set of numbers without boxes."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        features = tensorflow_datasets.features.FeaturesDict({"label": np.int64})
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, _):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield 0, {"label": 1}


def test_data_without_boxes_is_refused(tmp_path):
    TinyLabels(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(DataError, match=r"not a detection data set \(it has label\)"):
        TfdsDataset(tmp_path, "tiny_labels", "train")
