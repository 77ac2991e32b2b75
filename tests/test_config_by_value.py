"""Configurations that hold objects of any class: JSON with kinds, earlier names, paths, differences and flags."""

import dataclasses
import json
import sys
import textwrap
import types

import click
import pytest

from detr_jax.cli.configuration import read_config
from detr_jax.config import (
    ColorJitter,
    Config,
    ConfigError,
    DataConfig,
    DetrAugmentation,
    OptimizerConfig,
    ShapesConfig,
    SourceConfig,
    check_fields,
    differences,
    from_json,
    to_json,
    unknown_field,
)

OUTSIDE = """
import dataclasses
from detr_jax.config import DetrAugmentation, OptimizerConfig, SourceConfig

@dataclasses.dataclass(kw_only=True)
class Rows(SourceConfig):
    path: str = ""
    folds: tuple[int, ...] = (1, 2)
    retries: int | None = None

@dataclasses.dataclass(kw_only=True)
class Needs(SourceConfig):
    path: str

@dataclasses.dataclass(kw_only=True)
class Momentum(OptimizerConfig):
    momentum: float = 0.9

@dataclasses.dataclass(kw_only=True)
class Kind(SourceConfig):
    kind: str = ""
"""


@pytest.fixture
def outside(monkeypatch):
    """A module that is not of the package, imported."""
    module = types.ModuleType("outside_of_the_package")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(OUTSIDE, module.__dict__)
    return module


def test_the_default_configuration_names_no_class():
    assert '"kind"' not in to_json(Config())
    assert from_json(to_json(Config())) == Config()


def test_a_class_of_the_package_is_named_where_it_is_not_the_default_one():
    config = Config()
    config.data.augmentation = DetrAugmentation(photometric=ColorJitter(hue=0.1))
    config.data.sources["drawn"] = ShapesConfig(seed=5, kinds=("ring",))
    written = json.loads(to_json(config))["data"]
    assert written["augmentation"]["photometric"]["kind"] == "detr_jax.config.augmentation:ColorJitter"
    assert written["sources"]["drawn"]["kind"] == "detr_jax.config.sources:ShapesConfig"
    assert "kind" not in written["augmentation"]
    assert "kind" not in written["sources"]["shapes"]
    assert from_json(to_json(config)) == config


def test_classes_of_an_imported_module_come_back_with_their_own_fields(outside):
    config = Config(optimizer=outside.Momentum(momentum=0.5, schedule="cosine"))
    config.data.sources |= {"rows": outside.Rows(path="x", folds=(3,), retries=2), "needs": outside.Needs(path="y")}
    restored = from_json(to_json(config))
    assert restored == config
    assert type(restored.optimizer) is outside.Momentum
    assert restored.data.sources["rows"].folds == (3,)
    check_fields(restored)


def test_reading_json_never_imports_a_module_outside_of_the_package(tmp_path, monkeypatch):
    (tmp_path / "never_imported.py").write_text("raise AssertionError('the module was imported')")
    monkeypatch.syspath_prepend(tmp_path)
    values = {"data": {"sources": {"mine": {"kind": "never_imported:Rows", "path": "x"}}}}
    with pytest.raises(
        ConfigError, match=r"^data\.sources\.mine .*'never_imported:Rows'.*import never_imported before"
    ):
        from_json(json.dumps(values))
    assert "never_imported" not in sys.modules


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("outside_of_the_package:Missing", "outside_of_the_package has no dataclass Missing"),
        ("outside_of_the_package:dataclasses", "has no dataclass dataclasses"),
        ("detr_jax.config.nothing:Thing", "another version"),
        ("detr_jax_evil:Thing", "import detr_jax_evil before"),
        ("os:system", "os has no dataclass system"),
        ("os.system", "must name a class as"),
        (5, "must name a class as"),
        ("", "must name a class as"),
    ],
)
def test_a_kind_that_is_no_dataclass_is_refused_with_its_place(outside, kind, words):
    with pytest.raises(ConfigError) as error:
        from_json(json.dumps({"data": {"augmentation": {"kind": kind}}}))
    assert str(error.value).startswith("data.augmentation has kind=")
    assert words in str(error.value)


def test_a_class_of_another_sort_than_the_field_holds_is_refused(outside):
    text = json.dumps({"data": {"augmentation": {"kind": "outside_of_the_package:Rows"}}})
    with pytest.raises(ConfigError, match=r"^data\.augmentation=.*wrong type: it must be of class Augmentation"):
        from_json(text)
    config = Config()
    config.data.sources["wrong"] = OptimizerConfig()
    with pytest.raises(ConfigError, match=r"^data\.sources.*'wrong'.*must be of class SourceConfig"):
        check_fields(config)


def test_the_fields_of_an_entry_are_checked_by_type_and_range(outside):
    config = Config()
    config.data.sources["rows"] = outside.Rows(path=5)
    config.data.augmentation = DetrAugmentation(photometric=ColorJitter(hue=0.6))
    with pytest.raises(ConfigError) as error:
        check_fields(config)
    first, second = sorted(str(error.value).splitlines())
    assert first.startswith("data.augmentation.photometric.hue=0.6 is out of range")
    assert second.startswith("data.sources.rows.path=5 has the wrong type")


def test_an_entry_with_a_field_that_its_class_lacks_is_refused_by_path(outside):
    values = {"data": {"sources": {"rows": {"kind": "outside_of_the_package:Rows", "pathh": "x"}}}}
    with pytest.raises(ConfigError, match=r"^data\.sources\.rows\.pathh .*path"):
        from_json(json.dumps(values))


def test_an_entry_that_lacks_a_field_without_default_is_refused_by_path(outside):
    values = {"data": {"sources": {"mine": {"kind": "outside_of_the_package:Needs"}}}}
    with pytest.raises(ConfigError, match=r"^data\.sources\.mine .*path"):
        from_json(json.dumps(values))


def test_a_field_called_kind_cannot_be_written(outside):
    config = Config()
    config.data.sources["mine"] = outside.Kind(kind="x")
    with pytest.raises(ConfigError, match=r"data\.sources\.mine\.kind"):
        to_json(config)


def test_entries_that_json_lacks_are_the_default_ones():
    read = from_json(json.dumps({"data": {"sources": {"shapes": {"seed": 9}}}}))
    assert read == Config(data=DataConfig(sources={"shapes": ShapesConfig(seed=9)}))
    assert list(read.data.sources) == list(DataConfig().sources)


def test_choices_are_plain_strings_in_json_and_choices_again_when_read():
    config = Config(optimizer=OptimizerConfig(schedule="cosine"), data=DataConfig(exif="apply", on_error="skip"))
    config.data.sources["yolo"].rows = "polygon"
    values = json.loads(to_json(config))
    assert values["optimizer"]["schedule"] == "cosine"
    assert values["data"]["exif"] == "apply"
    restored = from_json(to_json(config))
    assert restored == config
    defaults = Config()
    assert type(restored.optimizer.schedule) is type(defaults.optimizer.schedule)
    assert type(restored.data.sources["yolo"].rows) is type(defaults.data.sources["yolo"].rows)
    assert restored.optimizer.schedule == "cosine"


RENAMED = [
    ("data.train_images", "images", "data.sources.coco.train_images"),
    ("data.train_annotations", "t.json", "data.sources.coco.train_annotations"),
    ("data.val_images", "images", "data.sources.coco.val_images"),
    ("data.val_annotations", "v.json", "data.sources.coco.val_annotations"),
    ("data.yolo_file", "x.yaml", "data.sources.yolo.file"),
    ("data.yolo_rows", "pose", "data.sources.yolo.rows"),
    ("data.voc_one_based", "true", "data.sources.voc.one_based"),
    ("data.tfds_name", "coco/2017", "data.sources.tfds.name"),
    ("data.tfds_val_annotations", "v.json", "data.sources.tfds.val_annotations"),
]


def value_at(node, path):
    for name in path.split("."):
        node = node[name] if isinstance(node, dict) else getattr(node, name)
    return node


@pytest.mark.parametrize(("old", "value", "new"), RENAMED)
def test_json_of_an_earlier_version_sets_the_field_of_the_new_name(old, value, new):
    section, name = old.split(".")
    read = from_json(json.dumps({section: {name: value, "exif": "auto"}}))
    assert list(differences(Config(), read)) == [new]
    assert value_at(read, new) == value


def test_the_shapes_of_an_earlier_version_become_an_entry():
    read = from_json(json.dumps({"data": {"dataset": "shapes", "shapes": {"seed": 3, "kinds": ["ring", "cross"]}}}))
    assert read.data.sources["shapes"] == ShapesConfig(seed=3, kinds=("ring", "cross"))
    assert read.data.sources["coco"] == DataConfig().sources["coco"]


def test_a_wrong_value_under_an_earlier_name_is_refused_under_the_new_one():
    with pytest.raises(ConfigError, match=r"^data\.sources\.yolo\.rows='circle' is not known"):
        from_json(json.dumps({"data": {"yolo_rows": "circle", "exif": "auto"}}))


def test_paths_follow_the_objects_that_a_configuration_holds(outside):
    config = Config(optimizer=outside.Momentum())
    config.data.sources["rows"] = outside.Rows()
    for path in ("optimizer.momentum", "data.sources.rows.path", "data.sources.rows", "data.augmentation.photometric"):
        assert unknown_field(path, config) is None
    for path in ("optimizer.momentum", "data.sources.rows.path"):
        assert unknown_field(path), "the default configuration lacks it"
    assert "did you mean data.sources.rows.path?" in unknown_field("data.sources.rows.pth", config)
    assert "did you mean data.sources.rows?" in unknown_field("data.sources.rosw", config)
    assert "data.sources.yolo.file" in unknown_field("data.yolo_file")
    assert "data.sources.shapes.seed" in unknown_field("data.shapes.seed")
    assert "optimizer.beta1 is a value" in unknown_field("optimizer.beta1.x")


def test_differences_see_entries_and_classes(outside):
    old, new = Config(), Config()
    old.data.sources["gone"] = outside.Rows(path="x")
    new.data.sources["rows"] = outside.Rows(path="x")
    new.data.sources["shapes"].seed = 4
    new.optimizer = outside.Momentum()
    new.data.augmentation.photometric = ColorJitter()
    assert differences(old, new) == {
        "data.sources.shapes.seed": (0, 4),
        "data.sources.gone": (outside.Rows(path="x"), None),
        "data.sources.rows": (None, outside.Rows(path="x")),
        "data.augmentation.photometric": (None, ColorJitter()),
        "optimizer": (OptimizerConfig(), outside.Momentum()),
    }
    assert differences(new, new) == {}


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("data.sources.yolo.rows=box", "data.sources.yolo.rows", "box"),
        ("data.sources.shapes.seed=7", "data.sources.shapes.seed", 7),
        ("data.sources.shapes.kinds=('ring',)", "data.sources.shapes.kinds", ("ring",)),
        ("data.on_error=skip", "data.on_error", "skip"),
        ("optimizer.schedule=cosine", "optimizer.schedule", "cosine"),
        ("optimizer.frozen=()", "optimizer.frozen", ()),
        ("optimizer.frozen=None", "optimizer.frozen", None),
        ("optimizer.frozen=('backbone/stem',)", "optimizer.frozen", ("backbone/stem",)),
        ("data.flip=false", "data.flip", False),
        ("training.steps=5", "training.steps", 5),
    ],
)
def test_flags_set_entries_choices_and_tuples(change, path, value):
    config = read_config(None, [f"--config.{change}"])
    assert value_at(config, path) == value
    check_fields(config)
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(("old", "value", "new"), RENAMED)
def test_a_flag_of_an_earlier_version_works_and_names_the_new_one(old, value, new, capsys):
    assert value_at(read_config(None, [f"--config.{old}={value}"]), new) == value
    assert value_at(read_config(None, [f"--config.{old}", value]), new) == value
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert f"--config.{new}" in warnings[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.sources.yolo.rows=circle", "'auto', 'box', 'polygon', 'pose'"),
        ("optimizer.schedule=linear", "'step', 'cosine', 'constant'"),
        ("data.sources.shapes.seed=x", "a whole number"),
        ("data.sources.shapez.seed=1", "did you mean data.sources.shapes?"),
        ("data.sources=5", "data.sources"),
        ("data.sources.shapes=5", "data.sources.shapes"),
    ],
)
def test_a_wrong_flag_is_refused_with_what_would_be_right(change, words):
    with pytest.raises(click.ClickException) as error:
        read_config(None, [f"--config.{change}"])
    assert words in error.value.message


MINE = """
    import dataclasses
    from detr_jax.config import Config, SourceConfig

    @dataclasses.dataclass(kw_only=True)
    class Parquet(SourceConfig):
        path: str = ""
        rows: int = 5

    def get_config():
        config = Config()
        config.data.sources["parquet"] = Parquet(path="a")
        config.data.dataset = "parquet"
        return config
"""


def test_a_configuration_file_defines_classes_that_flags_reach_and_json_gives_back(tmp_path, monkeypatch, request):
    file = tmp_path / "config_of_a_user.py"
    file.write_text(textwrap.dedent(MINE))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    request.addfinalizer(lambda: sys.modules.pop("config_of_a_user", None))
    config = read_config(file, ["--config.data.sources.parquet.rows=7"])
    source = config.data.sources["parquet"]
    assert (source.path, source.rows, source.__class__.__module__) == ("a", 7, "config_of_a_user")
    text = to_json(config)
    assert from_json(text) == config, "a run that is resumed reads its own config.json"
    del sys.modules["config_of_a_user"]
    with pytest.raises(ConfigError, match="import config_of_a_user before"):
        from_json(text)
    import config_of_a_user  # the folder of the file is on the path, for worker processes

    restored = from_json(text)
    assert restored.data.sources["parquet"] == config_of_a_user.Parquet(path="a", rows=7)


def test_every_class_of_a_data_set_says_that_open_is_missing():
    @dataclasses.dataclass(kw_only=True)
    class Unfinished(SourceConfig):
        pass

    with pytest.raises(NotImplementedError, match="Unfinished must define open"):
        Unfinished().open("train", DataConfig())
