"""`SharedArray`: an array that worker processes read from one copy in memory, instead of one copy per process."""

import os
from typing import Any

import numpy as np

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
