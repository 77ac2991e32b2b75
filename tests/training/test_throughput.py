"""A warning is given if the loader limits training."""

import pytest

from detr_jax.config import DataConfig
from detr_jax.training.throughput import Throughput


def warnings_of(seconds, waited, step_seconds, **fields):
    throughput = Throughput(10, DataConfig(**fields))
    found = []
    for _ in range(50):
        for _ in range(5):
            throughput.add(seconds, waited)
        throughput.step_seconds = step_seconds
        found.append(throughput.warning())
    return found


def test_a_loader_that_limits_training_causes_a_warning_with_both_rates_now_and_then():
    found = warnings_of(seconds=0.5, waited=0.3, step_seconds=0.2)
    warnings = [warning for warning in found if warning]
    assert found[:2] == [None, warnings[0]], "one slow interval may be chance"
    assert 2 <= len(warnings) <= 4
    assert "delivers 20 images/s, and the step could process 50." in warnings[0]


def test_the_advice_names_the_threads_if_they_are_fewer_than_the_cores(monkeypatch):
    monkeypatch.setattr("detr_jax.training.throughput.usable_cores", lambda: 6)
    assert "data.num_threads=0 for one thread on each of the 6 cores" in warnings_of(0.5, 0.3, 0.2, num_threads=2)[1]
    assert "All 6 cores" in warnings_of(0.5, 0.3, 0.2, num_threads=3, num_workers=2)[1]


@pytest.mark.parametrize(("seconds", "waited", "step_seconds"), [(0.5, 0.01, 0.3), (0.5, 0.3, 0.48), (0.5, 0.4, None)])
def test_there_is_no_warning_if_the_step_limits_training(seconds, waited, step_seconds):
    assert not any(warnings_of(seconds, waited, step_seconds))
