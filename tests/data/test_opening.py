"""Splits are opened together, compared, and divided from one list. Fields without effect are refused."""

import json

import numpy as np
import pytest
from PIL import Image

from detr_jax.config import CocoFiles, Config, ConfigError, DataConfig
from detr_jax.data import DataError, open_source, open_splits
from detr_jax.data.labels import TrainedLabels
from detr_jax.data.opening import open_to_check, share_of


def _form(names, number, prefix, size=(40, 60)):
    images = [{"id": k, "file_name": f"{prefix}{k}.png", "height": size[0], "width": size[1]} for k in range(number)]
    ids = list(names)
    annotations = [
        {"id": k + 1, "image_id": k % number, "category_id": ids[k % len(ids)], "bbox": [1, 1, 9, 9], "area": 81}
        for k in range(max(number, len(ids)))
    ]
    categories = [{"id": category_id, "name": name} for category_id, name in names.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def write(tmp_path, rng):
    """A function that writes a COCO folder from the instances forms of its splits."""

    def write(**splits):
        for split, form in splits.items():
            (tmp_path / split).mkdir(exist_ok=True)
            for image in form["images"]:
                pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / image["file_name"])
            (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(form))
        config = Config(data=DataConfig(root=str(tmp_path)))
        config.model.num_classes = 0
        return config

    return write


def test_an_id_with_two_names_is_refused(write):
    config = write(train=_form({1: "cat", 2: "dog"}, 4, "t"), valid=_form({1: "dog", 2: "cat"}, 3, "v"))
    with pytest.raises(DataError, match=r"category 1 is 'dog' here and 'cat' in .*train"):
        open_splits(config)
    found = open_to_check(config, ["train", "val"])["val"]
    assert found.faults.errors["categories with another name in the training split"] == 2


def test_other_differences_of_the_splits_are_noted(write):
    train = _form({1: "traffic light", 2: "dog"}, 4, "t")
    train["annotations"] = [one for one in train["annotations"] if one["category_id"] == 1]
    val = _form({1: "Traffic-Light", 2: "dog", 3: "cat"}, 3, "v", size=(200, 300))
    _, source = open_splits(write(train=train, valid=val))
    notes = "\n".join(source.faults.note_sentences())
    assert "'Traffic-Light' and 'traffic light'" in notes
    assert "objects here and none in the training split: 2 ('dog'; 'cat')" in notes
    assert "images have another size" in notes
    assert not source.faults.errors


def test_images_in_both_splits_are_noted(write, tmp_path):
    train, val = _form({1: "x"}, 4, "t"), _form({1: "x"}, 3, "v")
    val["images"][1]["file_name"] = "../train/t2.png"
    config = write(train=train, valid=val)
    _, source = open_splits(config)
    assert sum(number for kind, number in source.faults.notes.items() if "in the training split too" in kind) == 0
    config.data.sources["coco"] = CocoFiles(train_images=".", val_images=".")
    for form, split in ((train, "train"), (val, "valid")):
        for image in form["images"]:
            image["file_name"] = f"{split}/{image['file_name']}".replace("valid/../", "")
        (tmp_path / split / "_annotations.coco.json").write_text(json.dumps(form))
    _, source = open_splits(config)
    assert sum(number for kind, number in source.faults.notes.items() if "in the training split too" in kind) == 1


def test_sparse_ids_get_the_same_labels_in_both_splits(write):
    ids = {7: "cat", 1_700_000_123: "dog", 9_000_000_000: "bird"}
    config = write(train=_form(ids, 4, "t"), valid=_form({1_700_000_123: "dog"}, 3, "v"))
    train, val = open_splits(config)
    assert train.categories == {0: "cat", 1: "dog", 2: "bird"}
    assert val.categories == {1: "dog"}
    assert train.category_ids == dict(enumerate(ids))
    assert set(val.objects(0).labels.tolist()) == {1}
    assert {one["category_id"] for one in val.ground_truth()["annotations"]} == {1}
    assert set(train.all_objects()[1].labels.tolist()) == {0, 1, 2}
    alone = open_source(config, "val", trained=TrainedLabels(train.categories, train.category_ids))
    assert alone.categories == val.categories
    with pytest.raises(DataError, match="category 9000000000"):
        open_source(config, "train", trained=TrainedLabels({}, {}))


def test_a_share_of_the_images_is_held_out_by_their_file_names(write, tmp_path):
    config = write(train=_form({1: "x"}, 60, "a"))
    with pytest.raises(DataError, match=r"no split to evaluate on: set --config\.data\.val_share=0\.2"):
        open_splits(config)
    config.data.val_share = 0.3
    train, val = open_splits(config)
    names = {split: {source.file_name(i) for i in range(len(source))} for split, source in (("t", train), ("v", val))}
    assert names["v"] == {f"a{k}.png" for k in range(60) if share_of(f"a{k}.png") < 0.3}
    assert names["t"] | names["v"] == {f"a{k}.png" for k in range(60)}
    assert not names["t"] & names["v"]
    more = _form({1: "x"}, 80, "a")
    more["images"] = more["images"][::-1]
    config = write(train=more)
    config.data.val_share = 0.3
    _, val = open_splits(config)
    assert names["v"] <= {val.file_name(i) for i in range(len(val))}, "the same images although there are more"


def test_the_held_out_share_is_even(rng):
    numbers = np.array([share_of(f"{k}.jpg") for k in rng.integers(0, 10**9, 2000)])
    assert np.abs(np.histogram(numbers, 10, (0, 1))[0] - 200).max() < 70


def test_a_split_without_objects_is_an_error_unless_it_is_allowed(write):
    crowds = _form({1: "x"}, 3, "v")
    for one in crowds["annotations"]:
        one["iscrowd"] = 1
    config = write(train=_form({1: "x"}, 4, "t"), valid=crowds)
    with pytest.raises(DataError, match=r"3 images but no object to train on.*crowds.*: 3.*data\.allow_empty=True"):
        open_splits(config)
    config.data.allow_empty = True
    assert open_splits(config)[1].max_objects == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sources.yolo.file": "x.yaml"}, "data.sources.yolo.file='x.yaml' has no effect with data.dataset='coco'"),
        ({"sources.voc.one_based": "true"}, "data.sources.voc.one_based='true' has no effect"),
        ({"sources.tfds.name": "voc"}, "data.sources.tfds.name='voc' has no effect"),
        (
            {"val_split": "valid", "sources.coco.val_annotations": "valid/x.json"},
            "data.val_split='valid' has no effect",
        ),
        ({"val_split": "valid", "val_share": 0.2}, "data.val_share=0.2 has no effect"),
        ({"val_split": "none"}, "has no split 'none': set data.val_split to an existing split (train, valid)"),
    ],
)
@pytest.mark.parametrize("dataset", ["auto", "coco"])
def test_fields_that_have_no_effect_are_refused(write, changes, words, dataset):
    config = write(train=_form({1: "x"}, 4, "t"), valid=_form({1: "x"}, 3, "v"))
    config.data.dataset = dataset
    for path, value in changes.items():
        *section, name = path.split(".")
        setattr(config.data.sources[section[1]] if section else config.data, name, value)
    with pytest.raises((ConfigError, DataError)) as error:
        open_source(config, "val")
    assert words in str(error.value)


def test_a_held_out_share_without_effect_is_reported(write):
    config = write(train=_form({1: "x"}, 4, "t"), valid=_form({1: "x"}, 3, "v"))
    config.data.val_share = 0.5
    train, val = open_splits(config)
    assert (len(train), len(val)) == (4, 3)
    assert (
        "data.val_share=0.5 has no effect, because the data set has the split 'valid'" in val.faults.note_sentences()[0]
    )


def test_faults_of_a_divided_data_set_are_reported_once(write):
    form = _form({1: "x"}, 12, "a")
    for one in form["annotations"]:
        one["bbox"] = [1, 1, 300, 9]
    config = write(train=form)
    config.data.val_share = 0.4
    train, val = open_splits(config)
    assert sum(train.faults.counts.values()) == 12
    assert not val.faults.counts
    assert f"holds out {len(val)} of 12 images" in val.origin


def test_images_that_no_annotations_list_are_noted(write, tmp_path):
    config = write(train=_form({1: "x"}, 4, "t"), valid=_form({1: "x"}, 3, "v"))
    for name in ("train/extra.jpg", "train/deep/more.PNG", "valid/._junk.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    train, val = open_splits(config)
    kind = "image files are in its folders and not in its annotations"
    assert train.faults.notes[kind] == 2
    assert {name.rsplit("/", 1)[-1] for name in train.faults.first[kind]} == {"extra.jpg", "more.PNG"}
    assert kind not in val.faults.notes


@pytest.mark.parametrize(
    ("place", "words"), [("x.json", "is a file: give the folder"), ("up", "/up/deep, which is a data set.")]
)
def test_the_error_suggests_a_data_set_near_a_wrong_root(write, tmp_path, place, words):
    config = write(train=_form({1: "x"}, 2, "t"))
    (tmp_path / "x.json").touch()
    (tmp_path / "up" / "deep").mkdir(parents=True)
    (tmp_path / "train").rename(tmp_path / "up" / "deep" / "train")
    config.data.root = str(tmp_path / place)
    with pytest.raises(DataError) as error:
        open_source(config, "train")
    assert words in str(error.value)
