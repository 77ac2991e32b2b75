"""A short form of `tests/kill_anywhere.py`."""

from tests.kill_anywhere import run_variant


def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path, rng):
    result = run_variant("plain", 2, tmp_path, rng)
    assert result["faults"] == []
    assert result["kills"] == 2
    assert result["arrays"] > 100
