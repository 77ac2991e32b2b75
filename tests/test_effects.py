"""Fields that have no effect: each is named if it was set, and none otherwise."""

import dataclasses

import pytest

from detr_jax.config import Config, DataConfig, ShapesConfig
from detr_jax.config.effects import FORMAT_FIELDS, format_faults, ineffective, without_format


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.crop_short_sides": (), "data.crop_min": 200}, "data.crop_min=200 has no effect, as data.crop_short"),
        ({"data.train_buckets": ((64, 64),), "data.num_train_buckets": 3}, "data.num_train_buckets=3"),
        ({"data.max_skipped": 0.5}, "data.max_skipped=0.5 has no effect, as data.on_error"),
        ({"model.decoder_layers": 1, "loss.auxiliary": False}, "loss.auxiliary=False"),
        ({"optimizer.schedule": "cosine", "optimizer.drop_epoch": 100}, "optimizer.drop_epoch=100"),
        ({"training.steps": 10, "training.epochs": 20}, "training.epochs=20 has no effect, as training.steps is given"),
        ({"training.early_stop": 3, "evaluation.every_epochs": 0}, "training.early_stop=3"),
        ({"evaluation.pictures": 0, "evaluation.snapshots": 5}, "evaluation.snapshots=5"),
        ({"data.dataset": "coco", "data.shapes": ShapesConfig(seed=3)}, "data.shapes has no effect, as data.dataset"),
    ],
)
def test_a_field_without_effect_is_named_with_the_reason(changes, words):
    config = Config()
    assert not list(ineffective(config))
    for path, value in changes.items():
        section, name = path.split(".")
        setattr(getattr(config, section), name, value)
    (sentence,) = ineffective(config)
    assert sentence.startswith(words)


@pytest.mark.parametrize(
    ("dataset", "name", "value", "kinds"),
    [
        ("yolo", "train_images", "x", "'coco'"),
        ("coco", "yolo_rows", "box", "'yolo'"),
        ("tfds", "voc_one_based", "true", "'voc'"),
        ("voc", "tfds_name", "coco/2017", "'tfds'"),
        ("shapes", "val_split", "test", "'coco' or 'yolo' or 'voc' or 'labelme' or 'tfds'"),
    ],
)
def test_a_field_of_another_kind_of_data_set_is_refused(dataset, name, value, kinds):
    data = DataConfig(dataset=dataset)
    assert not list(format_faults(data))
    (sentence,) = format_faults(dataclasses.replace(data, **{name: value}))
    assert sentence == (
        f"data.{name}={value!r} has no effect with data.dataset={dataset!r}, only with {kinds}: leave it out."
    )


def test_what_says_how_data_are_read_can_be_forgotten():
    given = {name: "x" for name in FORMAT_FIELDS if isinstance(getattr(DataConfig(), name), str)}
    data = DataConfig(**given, dataset="coco", val_short_side=480)
    assert without_format(data) == DataConfig(val_short_side=480)
    assert without_format(data, keep=("root",)) == DataConfig(val_short_side=480, root="x")
