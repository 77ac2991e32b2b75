"""Detection of errors that mean "out of memory", on devices and on the host, and their messages."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNS = (
    "resource_exhausted",  # jaxlib, of compilers and devices; Orbax's storage
    "cuda out of memory",  # PyTorch
    "out_of_memory",  # CUDA
    "cannot allocate memory",  # ENOMEM, in Python and in Rust
    "can't allocate memory",  # PyTorch
    "bad_alloc",  # C++
    "ynnpack operation failed",  # XLA for CPUs, whose matrix library gives no other reason
)


class OutOfMemoryError(RuntimeError):
    """Something does not fit into memory. The message says what does not fit, and what to do."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or an error that caused it, means that memory ran out.

    Such errors have many forms: jaxlib's `JaxRuntimeError` with RESOURCE_EXHAUSTED, `MemoryError` of Python, numpy and
    Pillow, `OSError` with ENOMEM, and messages of other libraries in errors of any type.
    """
    while error is not None:
        if isinstance(error, MemoryError | OutOfMemoryError) or any(sign in str(error).lower() for sign in _SIGNS):
            return True
        error = error.__cause__
    return False


def does_not_fit(what: str, advice: str, error: BaseException | None = None) -> str:
    """A message that ``what`` does not fit, with the requested size if ``error`` contains it, and the advice."""
    return f"{what} does not fit into memory{_asked_for(error)}. {advice}"


@contextmanager
def fitting(what: str, advice: str) -> Iterator[None]:
    """Raises an `OutOfMemoryError` about ``what`` if memory runs out inside. An inner `OutOfMemoryError` is kept."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(does_not_fit(what, advice, error)) from error


def on_host(tree: Any) -> Any:
    """Copies the arrays that a compiled function returned to numpy arrays.

    It waits for the function first. With jaxlib 0.10 on CPUs, `jax.device_get` would wait forever for the results of a
    function that ran out of memory in the background.
    """
    import jax  # imported here because some commands use this file without JAX

    return jax.device_get(jax.block_until_ready(tree))


def size_text(size: float) -> str:
    """A number of bytes as text, in MiB, GiB or TiB."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 2**20:.3g} MiB"


def arrays_text(tree: Any) -> str:
    """The total size of a tree of arrays or abstract arrays as text, and its largest array with path and shape."""
    import jax  # imported here because some commands use this file without JAX

    sizes = {path: math.prod(x.shape) * x.dtype.itemsize for path, x in jax.tree.leaves_with_path(tree)}
    path, largest = max(jax.tree.leaves_with_path(tree), key=lambda item: sizes[item[0]])
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return f"{size_text(sum(sizes.values()))}, of which {name} {list(largest.shape)} takes {size_text(sizes[path])}"


def _asked_for(error: BaseException | None) -> str:
    """The size of the failed allocation, in brackets. Empty if no error contains the size."""
    while error is not None:
        if found := re.search(r"allocat\w* (\d+) ?bytes", str(error)):
            return f" ({size_text(int(found[1]))} in one piece)"
        if found := re.search(r"allocat\w* (\d+(?:\.\d+)?)\.? ?([KMGTPE]?i?B)\b", str(error)):
            return f" ({found[1]} {found[2]} in one piece)"
        error = error.__cause__
    return ""
