"""The buckets of a run and of a resumed run."""

import dataclasses

import pytest

from detr_jax.config import to_json
from detr_jax.sharding import create_mesh
from detr_jax.testing import tiny_config
from detr_jax.training.resolve import resolve


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
