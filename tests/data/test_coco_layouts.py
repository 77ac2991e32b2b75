"""Folders of COCO and of tools that export its form: every box, label and name is read as written."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from detr_jax.config import CocoFiles, Config, DataConfig
from detr_jax.data import DataError, find_layout, open_source, open_splits

NAMES = ("cat", "Hund ü", "traffic light")


def _split(rng, number, *, first_image=1, first_category=1, name="{}.jpg", text_ids=False):
    """A random instances form. ``name`` is the format of the file names."""
    images, annotations = [], []
    for k in range(number):
        height, width = rng.integers(40, 90, 2).tolist()
        image_id = first_image + k
        images.append({"id": image_id, "file_name": name.format(k), "height": height, "width": width})
        for _ in range(rng.integers(0 if k else 1, 4)):
            x, y = rng.integers(0, [width - 12, height - 12]).tolist()
            w, h = (int(rng.integers(5, 12)), float(np.round(rng.uniform(5, 11), 2)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": str(image_id) if text_ids else image_id,
                    "category_id": int(rng.integers(len(NAMES))) + first_category,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h]],
                }
            )
    categories = [{"id": first_category + k, "name": one, "supercategory": ""} for k, one in enumerate(NAMES)]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def _write(root, rng, file, folder, content, *, place=None):
    """Writes the JSON, and its images into a folder. ``place`` converts their names in the JSON to paths."""
    for image in content["images"]:
        path = root / folder / (place(image["file_name"]) if place else image["file_name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)).save(path)
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def official(root, rng):
    """cocodataset.org: two image folders, and annotation files with the year, next to the files of other tasks."""
    splits = {split: _split(rng, n, name=f"{{:0>12}}{n}.jpg") for split, n in (("train", 7), ("val", 4))}
    for split, content in splits.items():
        _write(root, rng, f"annotations/instances_{split}2017.json", f"{split}2017", content)
        for other in ("captions", "person_keypoints"):
            (root / "annotations" / f"{other}_{split}2017.json").write_text(json.dumps(content | {"keypoints": []}))
    return splits


def official_below_images(root, rng):
    splits = {split: _split(rng, n) for split, n in (("train", 6), ("val", 3))}
    for split, content in splits.items():
        _write(root, rng, f"annotations/instances_{split}2014.json.gz", f"images/{split}2014", content)
    return splits


def roboflow(root, rng):
    """A folder per split with images and JSON. Ids start at 0, and category 0 is a group named like a class."""
    splits = {}
    for split, folder, number in (("train", "train", 7), ("val", "valid", 3), ("test", "test", 2)):
        content = _split(rng, number, first_image=0, name=f"{split}{{}}_jpg.rf.{'ab' * 16}.jpg")
        content["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
        _write(root, rng, f"{folder}/_annotations.coco.json", folder, content)
        splits[split] = content
    (root / "README.roboflow.txt").write_text("text")
    return splits


def cvat(root, rng):
    """One task: annotations/instances_default.json and sub-folders of images/. Every annotation has attributes."""
    content = _split(rng, 9, name="cam 1/photo ({}).png")
    for one in content["annotations"]:
        one["attributes"] = {"occluded": False, "rotation": 0.0}
    _write(root, rng, "annotations/instances_default.json", "images", content)
    return {"all": content}


def datumaro(root, rng):
    splits = {split: _split(rng, n) for split, n in (("train", 6), ("val", 3))}
    for split, content in splits.items():
        _write(root, rng, f"annotations/instances_{split}.json", f"images/{split}", content)
    return splits


def label_studio(root, rng):
    """result.json and images/. Ids start at 0. File names have the folder and, in older versions, a backslash."""
    content = _split(rng, 8, first_image=0, first_category=0, name="images\\a1b2c3d4-{}.jpg")
    for one in content["annotations"]:
        one["ignore"] = 0
    _write(root, rng, "result.json", "", content, place=lambda name: name.replace("\\", "/"))
    return {"all": content}


def labelme2coco(root, rng):
    """annotations.json with JPEGImages/ in the file names and ids from 0, next to pictures of its visualisation."""
    content = _split(rng, 8, first_image=0, first_category=0, name="JPEGImages/{}.jpg")
    _write(root, rng, "annotations.json", "", content)
    (root / "Visualization").mkdir()
    return {"all": content}


def fiftyone(root, rng):
    content = _split(rng, 8, name="{:0>6}.jpg")
    _write(root, rng, "labels.json", "data", content)
    return {"all": content}


def via(root, rng):
    """The VGG image annotator: the JSON is among the images, and the annotations have image ids as texts."""
    content = _split(rng, 8, text_ids=True)
    _write(root, rng, "via_export_coco.json", ".", content)
    return {"all": content}


WRITERS = [official, official_below_images, roboflow, cvat, datumaro, label_studio, labelme2coco, fiftyone, via]


def _check(source, content):
    names = {one["id"]: one["name"] for one in content["categories"]}
    sizes = {int(one["id"]): [one["height"], one["width"]] for one in content["images"]}
    assert source.categories == names
    assert source.image_ids.tolist() == list(sizes)
    for index, image_id in enumerate(sizes):
        sample = source[index]
        image = sample.image
        boxes, labels = sample.objects.boxes, sample.objects.labels
        assert list(image.shape[:2]) == sizes[image_id]
        mine = [one for one in content["annotations"] if int(one["image_id"]) == image_id]
        assert labels.tolist() == [one["category_id"] for one in mine]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in mine)]
        np.testing.assert_allclose(boxes, np.array(corners).reshape(-1, 4), rtol=1e-6)


@pytest.mark.parametrize("writer", WRITERS)
def test_every_box_label_and_name_is_read_as_written(tmp_path, rng, writer):
    splits = writer(tmp_path, rng)
    data = DataConfig(root=str(tmp_path))
    config = Config(data=data)
    config.model.num_classes = 0
    sentence = find_layout(data).sentence
    assert "read as COCO" in sentence
    assert "\n" not in sentence
    if "all" in splits:
        _check(open_source(config, "val"), splits["all"])
        data.val_share, data.allow_empty = 0.4, True
        train, val = open_splits(config)
        assert sorted([*train.image_ids, *val.image_ids]) == sorted(one["id"] for one in splits["all"]["images"])
        assert 0 < len(val) < len(train) + len(val)
        return
    train, val = open_splits(config)
    _check(train, splits["train"])
    _check(val, splits["val"])
    if "test" in splits:
        data.val_split = "test"
        _check(open_source(config, "val"), splits["test"])


def test_the_error_lists_the_content_of_a_folder_that_is_not_a_data_set(tmp_path):
    (tmp_path / "results.json").write_text('[{"image_id": 1}]')
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"not recognised as a data set \(it holds notes\.txt, results\.json\)"):
        find_layout(DataConfig(root=str(tmp_path)))


def test_two_files_for_one_split_are_refused_until_one_is_chosen(tmp_path, rng):
    for year in (2014, 2017):
        content = _split(rng, 4, name=f"{year}_{{}}.jpg")
        _write(tmp_path, rng, f"annotations/instances_train{year}.json", f"train{year}", content)
    data = DataConfig(root=str(tmp_path))
    with pytest.raises(DataError, match=r"data\.train_split: set it to one of train2014, train2017"):
        open_source(Config(data=data), "train")
    data.train_split = "train2017"
    _check(open_source(Config(data=data), "train"), content)


def test_the_error_names_images_that_do_not_exist(tmp_path, rng):
    _write(tmp_path, rng, "annotations/instances_train.json", "elsewhere", _split(rng, 3, name="x{}.jpg"))
    with pytest.raises(DataError, match=r"images of .*instances_train\.json were not found \(it lists 'x0\.jpg'"):
        find_layout(DataConfig(root=str(tmp_path)))
    file = "annotations/instances_train.json"
    data = DataConfig(root=str(tmp_path), sources={"coco": CocoFiles(train_images="elsewhere", train_annotations=file)})
    assert len(open_source(Config(data=data), "train")) == 3
