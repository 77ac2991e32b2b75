"""The buckets of a run and of a resumed run."""

import dataclasses
import json
import sys
import types

import pytest

from detr_jax import train
from detr_jax.config import ConfigError, DETRConfig, to_json
from detr_jax.data.buckets import val_buckets
from detr_jax.sharding import create_mesh
from detr_jax.testing import tiny_config
from detr_jax.training.resolve import resolve


@dataclasses.dataclass(kw_only=True)
class Coarser(DETRConfig):
    """A detector that needs buckets of larger multiples than its backbone."""

    @property
    def stride(self):
        return 2 * self.backbone.stride


@pytest.fixture
def config():
    """Images of many sizes, on buckets that are chosen."""
    config = tiny_config()
    config.data.sources["shapes"] = dataclasses.replace(config.data.sources["shapes"], min_size=24, max_size=300)
    config.data.train_buckets = config.data.val_buckets = ()
    return config


def leave_checkpoint(workdir, config):
    """Writes the files of a run that the configuration of a resumed run depends on."""
    (workdir / "checkpoints" / "1" / "params").mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(to_json(config))


def test_a_run_resumed_with_more_steps_has_the_same_batches(config, tmp_path):
    """They stay the same although a new run with more steps gets more buckets, and however often it is resumed."""
    mesh = create_mesh()
    config.training.steps = 12
    first = resolve(config, tmp_path / "run", mesh)
    assert len(first.plan.buckets) == 1
    planned = [first.plan[step] for step in range(30)]
    for config.training.steps in (12, 10**8, 2 * 10**8):
        leave_checkpoint(tmp_path / "run", first.config)
        resumed = resolve(config, tmp_path / "run", mesh)
        assert resumed.plan.buckets == first.plan.buckets
        assert [resumed.plan[step] for step in range(30)] == planned
        assert resumed.config.data == first.config.data
        assert set(resumed.changed) <= {"training.steps"}
        first = resumed
    new = resolve(config, tmp_path / "new", mesh)
    assert len(new.plan.buckets) == 12
    assert new.config.data.num_val_buckets > first.config.data.num_val_buckets


def test_a_resumed_run_takes_fewer_buckets_if_it_is_given_fewer(config, tmp_path):
    mesh = create_mesh()
    config.training.steps = 10**8
    leave_checkpoint(tmp_path, resolve(config, tmp_path, mesh).config)
    config.data.num_train_buckets = 4
    resumed = resolve(config, tmp_path, mesh)
    assert len(resumed.plan.buckets) == 4
    assert resumed.changed == {"data.num_train_buckets": (12, 4)}


def test_a_run_of_an_earlier_version_keeps_all_its_buckets(config, tmp_path):
    """Its config.json holds the largest number, which an earlier version always chose."""
    config.training.steps = 12
    leave_checkpoint(tmp_path, config)
    resumed = resolve(config, tmp_path, create_mesh())
    assert len(resumed.plan.buckets) == 12
    assert not resumed.changed


def test_buckets_are_multiples_of_the_stride_of_the_detector_and_a_run_trains_on_them(config, tmp_path):
    """Its stride differs from that of its backbone."""
    model = config.model
    config.model = Coarser(**{field.name: getattr(model, field.name) for field in dataclasses.fields(model)})
    config.data.sources["shapes"].min_size = config.data.sources["shapes"].max_size = 50
    config.training.steps = 1
    stride = 2 * model.backbone.stride
    resolved = resolve(config, tmp_path / "run", create_mesh())
    buckets = resolved.plan.buckets
    assert (stride, buckets) == (8, [(56, 56)])
    assert val_buckets(resolved.val_source, resolved.config.data, stride) == [(56, 56)]
    train(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "1").exists()


@dataclasses.dataclass(kw_only=True)
class Wider(DETRConfig):
    """A detector with a field that a run may change, and one that it may not."""

    run_fields = ("temperature", *DETRConfig.run_fields)

    temperature: float = 1.0
    depth: int = 1


def test_another_class_of_detector_is_refused(tmp_path):
    config = tiny_config()
    leave_checkpoint(tmp_path, resolve(config, tmp_path, create_mesh()).config)
    fields = {f.name: getattr(config.model, f.name) for f in dataclasses.fields(config.model)}
    config.model = Wider(**fields)
    with pytest.raises(ConfigError, match=r"^model was DETRConfig when .* and is Wider now: set it back, or choose"):
        resolve(config, tmp_path, create_mesh())


def test_the_run_fields_of_a_detector_may_change_and_its_other_fields_may_not(tmp_path):
    config = tiny_config()
    config.model = Wider(**{f.name: getattr(config.model, f.name) for f in dataclasses.fields(config.model)})
    leave_checkpoint(tmp_path, resolve(config, tmp_path, create_mesh()).config)
    config.model = dataclasses.replace(config.model, temperature=2.0, dropout=0.0)
    resumed = resolve(config, tmp_path, create_mesh())
    assert resumed.changed == {"model.temperature": (1.0, 2.0), "model.dropout": (0.1, 0.0)}
    assert resumed.changes_metrics
    config.model = dataclasses.replace(config.model, depth=2)
    with pytest.raises(ConfigError, match=r"^model\.depth was 1 when .* and is 2 now"):
        resolve(config, tmp_path, create_mesh())


@pytest.mark.parametrize("section", ["data", "evaluation", "optimizer"])
def test_only_changed_sections_of_data_evaluation_and_model_change_the_metrics(section, tmp_path):
    """A section of another class counts like each of its fields."""
    resolved = resolve(tiny_config(), tmp_path, create_mesh())
    changed = dataclasses.replace(resolved, changed={section: (None, None)})
    assert changed.changes_metrics == (section != "optimizer")
    assert dataclasses.replace(resolved, changed={f"{section}.field": (1, 2)}).changes_metrics == (
        section != "optimizer"
    )


@pytest.mark.parametrize("text", ["{'model': ", "[1, 2]", b"\xff\xfe"])
def test_a_damaged_config_file_may_be_deleted(text, tmp_path):
    leave_checkpoint(tmp_path, tiny_config())
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"config\.json is damaged: .* Delete config\.json"):
        resolve(tiny_config(), tmp_path, create_mesh())


def test_a_config_file_with_a_class_that_is_not_imported_is_not_damaged(tmp_path, monkeypatch):
    module = types.ModuleType("module_of_a_user")
    module.Wider = type("Wider", (Wider,), {"__module__": module.__name__, "__qualname__": "Wider"})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    config = tiny_config()
    config.model = module.Wider(num_classes=3)
    leave_checkpoint(tmp_path, config)
    monkeypatch.delitem(sys.modules, module.__name__)
    with pytest.raises(ConfigError) as error:
        resolve(tiny_config(), tmp_path, create_mesh())
    assert "config.json cannot be used: model has kind='module_of_a_user:Wider'" in str(error.value)
    assert "import module_of_a_user before" in str(error.value)
    assert "damaged" not in str(error.value)
    assert "Delete" not in str(error.value)


def test_a_config_file_of_another_version_is_not_damaged(tmp_path):
    leave_checkpoint(tmp_path, tiny_config())
    (tmp_path / "config.json").write_text(json.dumps({"model": {"of_a_later_version": 1}}))
    with pytest.raises(ConfigError, match=r"config\.json cannot be used: model\.of_a_later_version is not") as error:
        resolve(tiny_config(), tmp_path, create_mesh())
    assert "Delete" not in str(error.value)
