"""Checks of the configuration, its JSON form, and the comparison of two."""

import dataclasses
import json
import math

import pytest

from configs import shapes
from detr_jax.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    check,
    check_buckets,
    differences,
    from_json,
    to_json,
)


def valid_config():
    buckets = ((64, 64), (64, 128))
    return Config(data=DataConfig(dataset="shapes", train_buckets=buckets, val_buckets=buckets))


def with_field(path, value):
    """A valid configuration but for one field, as ``--config.path=value`` makes it."""
    config = node = valid_config()
    *parents, name = path.split(".")
    for parent in parents:
        node = node[parent] if isinstance(node, dict) else getattr(node, parent)
    assert hasattr(node, name)
    setattr(node, name, value)
    return config


def test_a_valid_configuration_is_returned_as_it_is():
    config = valid_config()
    assert check(config) is config


def test_the_defaults_lack_only_what_depends_on_the_data():
    with pytest.raises(ConfigError) as error:
        check(Config())
    lines = str(error.value).splitlines()
    assert [line.split()[0] for line in lines] == ["data.root"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.backbone.block", "bottle"),
        ("model.backbone.stem", "big"),
        ("model.backbone.norm", "batch"),
        ("model.backbone.norm", None),
        ("model.backbone.blocks", ()),
        ("model.backbone.blocks", (1, 1, 1, 1, 1)),
        ("model.backbone.blocks", (3, 0)),
        ("model.backbone.blocks", [3, 4, 6, 3]),
        ("model.backbone.width", 0),
        ("model.backbone", None),
        ("model.num_classes", -1),
        ("data.sources.shapes.kinds", ()),
        ("data.sources.shapes.kinds", ("circle", "blob")),
        ("data.sources.shapes.kinds", ("ring", "ring")),
        ("training.follow_checkpoint", True),
        ("model.num_classes", "91"),
        ("model.num_queries", 2.5),
        ("model.num_queries", True),
        ("model.num_heads", 7),
        ("model.hidden_dim", -256),
        ("model.encoder_layers", -1),
        ("model.decoder_layers", 0),
        ("model.dropout", 1.0),
        ("model.dropout", -0.1),
        ("model.pre_norm", 1),
        ("model.position_embedding", "none"),
        ("model.dtype", "float16"),
        ("loss.matcher", "hungarian"),
        ("loss.terms.ce.no_object", math.nan),
        ("loss.terms.bbox.weight", math.inf),
        ("data.dataset", "imagenet"),
        ("data.num_train_buckets", 0),
        ("data.num_val_buckets", -1),
        ("data.train_buckets", ((64, 65),)),
        ("data.val_buckets", ((0, 64),)),
        ("data.val_buckets", ((64,),)),
        ("data.train_buckets", (64, 64)),
        ("data.train_short_sides", (480, -512)),
        ("data.train_short_sides", (0,)),
        ("data.crop_min", 401),
        ("data.crop_max", 383),
        ("data.val_short_side", -1),
        ("data.num_threads", -1),
        ("data.num_workers", -1),
        ("data.sources.shapes.min_size", 65),
        ("data.sources.shapes.max_objects", -1),
        ("optimizer.learning_rate", -1e-4),
        ("optimizer.beta1", 1.0),
        ("optimizer.beta2", 1.5),
        ("optimizer.schedule", "linear"),
        ("optimizer.frozen", "backbone"),
        ("training.accumulate", 3),
        ("training.batch_size", 0),
        ("training.epochs", None),
        ("training.steps", -5),
        ("training.steps", 1e5),
        ("training.ema_decay", 1.0),
        ("evaluation.picture_threshold", 1.1),
    ],
)
def test_a_wrong_value_gives_one_sentence_that_names_the_field(path, value):
    with pytest.raises(ConfigError) as error:
        check(with_field(path, value))
    (sentence,) = str(error.value).splitlines()
    assert path in sentence
    assert sentence.endswith(".")


@pytest.mark.parametrize(
    "path",
    [
        "model.dropout",
        "loss.terms.ce.no_object",
        "optimizer.backbone_learning_rate",
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "training.ema_decay",
        "evaluation.picture_threshold",
    ],
)
@pytest.mark.parametrize("zero", [0.0, 0])
def test_a_real_number_may_be_zero_written_either_way(path, zero):
    check(with_field(path, zero))


@pytest.mark.parametrize(
    "path",
    [
        "model.encoder_layers",
        "data.val_short_side",
        "data.num_threads",
        "data.num_workers",
        "optimizer.warmup_steps",
        "training.seed",
    ],
)
def test_counts_that_mean_none_or_off_may_be_zero(path):
    check(with_field(path, 0))


def test_relations_between_fields_are_checked():
    config = valid_config()
    config.model.backbone.norm, config.model.backbone.width = "group", 6
    config.model.backbone.block, config.model.backbone.dilation = "basic", True
    config.model.hidden_dim, config.model.num_heads = 30, 5
    with pytest.raises(ConfigError) as error:
        check(config)
    text = str(error.value)
    assert len(text.splitlines()) == 3
    for field in ("model.backbone.dilation", "model.backbone.width", "model.hidden_dim"):
        assert field in text


def test_all_faults_are_told_at_once():
    config = valid_config()
    config.model.num_queries, config.loss.matcher, config.optimizer.beta1 = -1, "greedy", -1.0
    with pytest.raises(ConfigError) as error:
        check(config)
    assert len(str(error.value).splitlines()) == 3


def test_buckets_need_only_be_multiples_of_the_backbones_own_stride():
    config = with_field("data.train_buckets", ((48, 80),))
    with pytest.raises(ConfigError, match=r"data.train_buckets holds \(48, 80\).*multiples of 32"):
        check(config)
    config.model.backbone.dilation = True
    check(config)


def changed_config():
    config = valid_config()
    config.training.epochs, config.training.steps = None, 77
    config.optimizer.frozen = ("backbone",)
    config.model.backbone.blocks = (1, 2)
    config.data.crop_short_sides = ()
    return config


def test_json_gives_the_same_configuration_back():
    config = changed_config()
    restored = from_json(to_json(config))
    assert restored == config
    assert restored.data.train_buckets == ((64, 64), (64, 128))
    assert check(restored) is restored


def test_fields_that_json_lacks_take_their_defaults():
    assert from_json('{"model": {"num_queries": 12}}') == Config(model=ModelConfig(num_queries=12))
    assert from_json("{}") == Config()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"modle": {}}, "modle"),
        ({"model": {"queries": 5}}, "model.queries"),
        ({"model": {"backbone": {"depth": 50}}}, "model.backbone.depth"),
        ({"model": 5}, "model"),
        ([], "The configuration"),
    ],
)
def test_json_with_an_unknown_field_or_shape_is_refused_by_name(values, named):
    with pytest.raises(ConfigError) as error:
        from_json(json.dumps(values))
    assert str(error.value).startswith(f"{named} ")


def test_text_that_is_not_json_is_refused():
    with pytest.raises(ConfigError, match="not JSON"):
        from_json("{'model':")


def test_differences_are_the_changed_fields_by_path():
    old, new = valid_config(), changed_config()
    assert differences(old, dataclasses.replace(old)) == {}
    assert differences(old, new) == {
        "training.epochs": (300, None),
        "training.steps": (None, 77),
        "optimizer.frozen": (None, ("backbone",)),
        "model.backbone.blocks": ((3, 4, 6, 3), (1, 2)),
        "data.crop_short_sides": ((400, 500, 600), ()),
    }


def test_learned_positions_need_buckets_within_their_tables():
    config = shapes.get_config()
    config.model.position_embedding = "learned"
    check(config)
    config.data.train_buckets = ((64, 64), (512, 64))
    with pytest.raises(ConfigError, match=r"\(512, 64\).*at most 400 pixels.*learned"):
        check(config)
    with pytest.raises(ConfigError, match=r"\(512, 64\).*at most 400 pixels.*learned"):
        check_buckets(config.model, [(64, 64), (512, 64)])
    config.model.position_embedding = "sine"
    check_buckets(config.model, [(64, 64), (512, 64)])
