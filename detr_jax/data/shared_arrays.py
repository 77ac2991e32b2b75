"""Memory that is shared with worker processes.

`SharedArray` is an array that all of them read from one copy. `unlinked` receives the batches that they send.
"""

import os
from multiprocessing.shared_memory import SharedMemory
from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")

_MIN_BYTES = 2**16  # for smaller arrays, a copy costs less than a file


class SharedArray:
    """A constant array whose pickle refers to its content in memory instead of holding it.

    On Linux, the content is written to an anonymous file in memory when the array is first pickled. A process that
    unpickles the array maps this file. This process must still be alive then. The memory is freed when no process uses
    it any more. On other systems, and for small arrays, the pickle holds a copy.

    Args:
      array: of any shape and dtype.
    """

    def __init__(self, array: np.ndarray):
        self.array = array
        self._descriptor: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.array.nbytes < _MIN_BYTES or not hasattr(os, "memfd_create"):
            return SharedArray, (self.array,)
        if self._descriptor is None:
            self._descriptor = os.memfd_create("detr_jax")
            with os.fdopen(os.dup(self._descriptor), "wb") as file:
                np.ascontiguousarray(self.array).tofile(file)
        return _mapped, (os.getpid(), self._descriptor, self.array.dtype.str, self.array.shape)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def _mapped(process: int, descriptor: int, dtype: str, shape: tuple[int, ...]) -> SharedArray:
    return SharedArray(np.memmap(f"/proc/{process}/fd/{descriptor}", np.dtype(dtype), "r", shape=shape))


def unlinked(batch: T) -> T:
    """A pytree of arrays whose shared memory, if they have any, has no name and lives as long as the arrays.

    grain removes the names when it deletes the arrays. This never happens for arrays that are alive when the program
    ends, and grain itself keeps the last batch in a cycle of references.
    """
    for array in jax.tree.leaves(batch):
        memory = getattr(array, "shm", None)
        if isinstance(memory, SharedMemory):
            memory.unlink()
            memory.unlink = lambda: None  # type: ignore[method-assign]  # grain's own call would fail
    return batch
