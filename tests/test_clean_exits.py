"""A short form of `tests/clean_exits.py`: the cheap commands, twice."""

import os

import pytest

from tests.clean_exits import CASES, prepare, run_case

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")

_CHEAP = ["help", "check-data", "check-data of nothing", "predict", "train to its end again", "train with workers"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The inputs of the commands."""
    folder = tmp_path_factory.mktemp("clean")
    prepare(folder)
    return folder


@pytest.mark.parametrize("name", _CHEAP)
def test_a_command_ends_cleanly(folder, rng, name):
    for _ in range(1 if CASES[name].slow else 2):
        faults, _ = run_case(CASES[name], folder, rng, 0.0)
        assert not faults
