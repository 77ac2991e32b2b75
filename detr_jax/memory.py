"""Memory that runs out, on a device or on the host: how it is recognised, and the sentence that it becomes."""

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
    "ynnpack operation failed",  # XLA for CPUs, whose library of products gives no other reason
)


class OutOfMemoryError(RuntimeError):
    """Something does not fit into memory; the message says what, and what to do."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, says that memory ran out.

    This has many forms: jaxlib's `JaxRuntimeError` with RESOURCE_EXHAUSTED, `MemoryError` of Python, numpy and Pillow,
    `OSError` with ENOMEM, and messages of other libraries in errors of any type.
    """
    while error is not None:
        if isinstance(error, MemoryError | OutOfMemoryError) or any(sign in str(error).lower() for sign in _SIGNS):
            return True
        error = error.__cause__
    return False


def does_not_fit(what: str, advice: str, error: BaseException | None = None) -> str:
    """The sentences for what does not fit, with the size that was asked for if ``error`` tells it."""
    return f"{what} does not fit into memory{_asked_for(error)}. {advice}"


@contextmanager
def fitting(what: str, advice: str) -> Iterator[None]:
    """Raises an `OutOfMemoryError` about ``what`` if memory runs out inside; one from further inside stays as it is."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(does_not_fit(what, advice, error)) from error


def on_host(tree: Any) -> Any:
    """What a program returned, as arrays of numpy.

    It waits for the program first: with jaxlib 0.10 on CPUs, `jax.device_get` of what a program that ran out of memory
    should have returned waits forever, if the program runs in the background.
    """
    import jax  # here: this file also serves commands that do not need jax

    return jax.device_get(jax.block_until_ready(tree))


def size_text(size: float) -> str:
    """A number of bytes in MiB, GiB or TiB."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size / 2**20:.3g} MiB"


def arrays_text(tree: Any) -> str:
    """The bytes of a tree of arrays or of their shapes in all, and its largest array with path and shape."""
    import jax  # here: this file also serves commands that do not need jax

    sizes = {path: math.prod(x.shape) * x.dtype.itemsize for path, x in jax.tree.leaves_with_path(tree)}
    path, largest = max(jax.tree.leaves_with_path(tree), key=lambda item: sizes[item[0]])
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return f"{size_text(sum(sizes.values()))}, of which {name} {list(largest.shape)} takes {size_text(sizes[path])}"


def _asked_for(error: BaseException | None) -> str:
    """The size of the piece that could not be had, in brackets; nothing if no error tells it."""
    while error is not None:
        if found := re.search(r"allocat\w* (\d+) ?bytes", str(error)):
            return f" ({size_text(int(found[1]))} in one piece)"
        if found := re.search(r"allocat\w* (\d+(?:\.\d+)?)\.? ?([KMGTPE]?i?B)\b", str(error)):
            return f" ({found[1]} {found[2]} in one piece)"
        error = error.__cause__
    return ""
