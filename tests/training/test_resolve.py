"""The buckets of a run and of a resumed run."""

import dataclasses

import pytest

from detr_jax import train
from detr_jax.config import DETRConfig, to_json
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
