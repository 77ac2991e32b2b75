"""Keep freed host memory for reuse (CPU backend, glibc)."""

import ctypes
import importlib.util
import os
import platform

import jax

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Configures glibc to reuse freed blocks instead of returning them to the kernel. Call it before JAX runs anything.

    On CPUs JAX allocates the temporaries of a compiled function at each call, which takes hundreds of MiB to some GiB.
    By default glibc maps and unmaps them, and the kernel zeroes every page again (benchmarks/RESULTS.md). With this
    setting the memory of the process stays at its peak instead.

    glibc keeps large blocks only for the main thread. JAX's asynchronous dispatch on CPUs is therefore turned off:
    compiled functions run in the calling thread, and a call returns when the function has ended.

    Nothing changes with other devices or C libraries, or if the user has set ``GLIBC_TUNABLES`` or a variable such as
    ``MALLOC_TRIM_THRESHOLD_`` in the environment.
    """
    decided = any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ)
    if decided or platform.libc_ver()[0] != "glibc" or not _on_cpu():
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _on_cpu() -> bool:
    """Whether JAX will run on the CPU. This does not start JAX."""
    if platforms := jax.config.values.get("jax_platforms"):
        return platforms.split(",")[0] == "cpu"
    return not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
