"""The host's memory, which programs for CPUs free and want again at each call."""

import ctypes
import importlib.util
import os
import platform

import jax

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Has the C library keep the blocks that JAX frees, for the next step, in place of giving them back.

    On CPUs JAX allocates the temporaries of a program anew at each call: hundreds of MiB to some GiB. glibc has them
    mapped and unmapped, so that the kernel hands out and zeroes every page again (benchmarks/RESULTS.md). With this the
    memory of the process stays at its peak. As glibc keeps large blocks for the main thread alone, programs run in the
    thread that calls them, and a call returns when its program has ended; this, where JAX has not run anything yet.

    Nothing is done where there are other devices or C libraries, nor where the user has decided by the environment: by
    ``GLIBC_TUNABLES`` or a variable such as ``MALLOC_TRIM_THRESHOLD_``.
    """
    decided = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if decided or platform.libc_ver()[0] != "glibc" or not _on_cpu():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _on_cpu() -> bool:
    """Whether JAX will run on the CPU, told without starting it."""
    if platforms := jax.config.values.get("jax_platforms"):
        return platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
