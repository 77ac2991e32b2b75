"""Freed memory is kept for reuse; each test runs in a process of its own."""

import os
import statistics
import subprocess
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("only glibc is configured", allow_module_level=True)

PAGES = """
import resource
import jax
import numpy as np
from detr_jax.host_memory import keep_freed_memory

keep_freed_memory()
double = jax.jit(lambda x: x * 2)
halves = jax.numpy.full(2**26, 0.5)
ones = {"numpy": lambda: np.ones(2**25), "jax": lambda: double(halves)}[BY]
pages = []
for _ in range(16):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(ones())  # 256 MiB
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*pages)
"""


@pytest.mark.parametrize(("variable", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
@pytest.mark.parametrize("by", ["numpy", "jax"])
def test_the_kernel_maps_pages_once_unless_the_environment_configures_malloc(variable, kept, by):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    run = subprocess.run(
        [sys.executable, "-c", PAGES.replace("BY", repr(by))],
        env=environment | variable,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    first, *later = map(int, run.stdout.split())
    if by == "jax":  # until memory has settled, a call may find the block of the one before still in use
        later = [statistics.median(later[5:])]
    assert all((pages < first / 10) == kept for pages in later)
