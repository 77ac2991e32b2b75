"""Fields that have no effect: each is named if it was set, and none otherwise."""

import dataclasses

import pytest

from detr_jax.config import (
    BackboneConfig,
    CocoFiles,
    Config,
    DataConfig,
    ShapesConfig,
    SourceConfig,
    TfdsConfig,
    VocFiles,
    YoloFiles,
)
from detr_jax.config.effects import SOURCE_FIELDS, ineffective, source_field_faults, without_source


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
        (
            {"data.dataset": "coco", "data.sources": {"shapes": ShapesConfig(seed=3)}},
            "data.sources.shapes has no effect, as data.dataset is not 'shapes'",
        ),
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


@dataclasses.dataclass(kw_only=True)
class OtherDetector:
    """The configuration of a detector without the fields of DETR's decoder."""

    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)


def test_a_detector_without_decoder_layers_does_not_make_auxiliary_losses_useless():
    config = Config()
    config.model, config.loss.auxiliary = OtherDetector(), False
    assert not list(ineffective(config))


@pytest.mark.parametrize(
    ("dataset", "fields", "path", "kinds"),
    [
        ("yolo", {"coco": CocoFiles(train_images="x")}, "data.sources.coco.train_images='x'", "'coco'"),
        ("coco", {"yolo": YoloFiles(rows="box")}, "data.sources.yolo.rows='box'", "'yolo'"),
        ("tfds", {"voc": VocFiles(one_based="true")}, "data.sources.voc.one_based='true'", "'voc'"),
        ("voc", {"tfds": TfdsConfig(name="coco/2017")}, "data.sources.tfds.name='coco/2017'", "'tfds'"),
    ],
)
def test_a_field_of_another_data_set_is_refused(dataset, fields, path, kinds):
    data = DataConfig(dataset=dataset)
    assert not list(source_field_faults(data))
    (sentence,) = source_field_faults(dataclasses.replace(data, sources=data.sources | fields))
    assert sentence == f"{path} has no effect with data.dataset={dataset!r}, only with {kinds}: remove it."


def test_a_shared_field_that_a_data_set_ignores_is_refused():
    (sentence,) = source_field_faults(DataConfig(dataset="shapes", val_split="test"))
    assert sentence == (
        "data.val_split='test' has no effect with data.dataset='shapes', only with 'coco' or 'coco_panoptic' or "
        "'yolo' or 'voc' or 'labelme' or 'tfds': remove it."
    )


@dataclasses.dataclass(kw_only=True)
class OwnSource(SourceConfig):
    path: str = ""


def test_an_entry_of_ones_own_may_stay_unused_and_keeps_its_fields():
    data = DataConfig(dataset="coco", sources={"own": OwnSource(path="x"), "coco": CocoFiles(train_images="y")})
    assert not list(source_field_faults(data))
    assert without_source(data).sources == DataConfig(sources={"own": OwnSource(path="x")}).sources


def test_what_says_how_data_are_read_can_be_forgotten():
    given = {name: "x" for name in SOURCE_FIELDS if isinstance(getattr(DataConfig(), name), str)}
    data = DataConfig(**given, dataset="coco", sources={"coco": CocoFiles(val_images="x")}, val_short_side=480)
    assert without_source(data) == DataConfig(val_short_side=480)
    assert without_source(data, keep=("root",)) == DataConfig(val_short_side=480, root="x")
