"""Labels of data sets for a trained model, which may know their classes or not."""

import numpy as np
import pytest
from PIL import Image

from detr_jax.config import Config, DataConfig
from detr_jax.data import DataError, open_source, open_splits
from detr_jax.data.labelling import check_same_classes, unknown_classes
from detr_jax.data.labels import TrainedLabels

XML = "<annotation><filename>{}.png</filename><size><width>60</width><height>40</height></size>{}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></object>"


@pytest.fixture
def folder(tmp_path):
    """A function that writes a VOC folder with one image for each list of class names."""

    def write(name, *images):
        root = tmp_path / name
        for split in ("train", "val"):
            (root / split).mkdir(parents=True, exist_ok=True)
            for k, names in enumerate(images):
                Image.new("RGB", (60, 40)).save(root / split / f"{split}{k}.png")
                text = XML.format(f"{split}{k}", "".join(map(OBJECT.format, names)))
                (root / split / f"{split}{k}.xml").write_text(text)
        config = Config(data=DataConfig(root=str(root)))
        config.model.num_classes = 0
        return config

    return write


def _names(source):
    return [[source.categories[x] for x in source.objects(i).labels.tolist()] for i in range(len(source))]


def test_classes_of_a_folder_get_the_labels_of_the_model_by_their_names(folder):
    trained = TrainedLabels({0: "Platelets", 1: "RBC", 2: "WBC"}, {})
    config = folder("few", ["WBC"], ["RBC", "WBC"])
    plain = open_source(config, "val")
    assert plain.categories == {0: "RBC", 1: "WBC"}
    source = open_source(config, "val", trained=trained)
    assert source.categories == {1: "RBC", 2: "WBC"}
    assert source.category_ids == {}
    assert [source.objects(i).labels.tolist() for i in range(2)] == [[2], [1, 2]]
    assert {one["category_id"] for one in source.ground_truth()["annotations"]} == {1, 2}
    assert _names(source) == _names(plain)
    assert unknown_classes(source, trained) is None


def test_a_class_that_is_new_to_the_model_gets_the_next_label_and_is_reported(folder):
    trained = TrainedLabels({0: "RBC", 1: "WBC"}, {})
    source = open_source(folder("more", ["Alga", "WBC"]), "val", trained=trained)
    assert source.categories == {2: "Alga", 1: "WBC"}
    assert "not trained on 'Alga'" in unknown_classes(source, trained)


def test_a_run_is_refused_if_its_labels_have_changed_their_meaning(folder):
    config = folder("some", ["RBC", "WBC"])
    train, _ = open_splits(config, trained=None)
    check_same_classes(train, TrainedLabels({0: "RBC", 1: "wbc", 2: "gone"}, {}))
    with pytest.raises(DataError, match=r"Label 0 is 'RBC' in .* and was 'Platelets' when this run was started"):
        check_same_classes(train, TrainedLabels({0: "Platelets", 1: "RBC"}, {}))


def test_names_that_differ_for_one_label_are_noted(folder):
    source = open_source(folder("two", ["RBC", "WBC"]), "val")
    note = unknown_classes(source, TrainedLabels({0: "cat", 1: "WBC"}, {}))
    assert "1 have other names in the model (0 is 'cat' to the model and 'RBC' in the data)" in note
    assert unknown_classes(source, TrainedLabels({}, {})) is None


def test_labels_are_checked_only_for_classes_with_objects(folder):
    config = folder("three", ["a", "b", "c"])
    config.model.num_classes = 2
    with pytest.raises(DataError, match=r"category 2 \('c'\).*model\.num_classes=2.*set it to 3 or more, or to 0"):
        open_source(config, "train")
    source = open_source(config, "train", trained=TrainedLabels({0: "a", 1: "b"}, {}))
    assert np.unique(source.all_objects()[1].labels).tolist() == [0, 1, 2]
