"""Check the sizes that a checkpoint file of another framework declares, before arrays are allocated for them.

A tensor can be a view that repeats few stored numbers, and an archive can be compressed. So a small file can ask for
any amount of memory.
"""

import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from detr_jax.array_files import check_zip
from detr_jax.files import check_unpacked, open_regular

_BYTES = 4
"""Bytes per number. Floating point numbers of any width become float32."""


def check_file(path: Path) -> None:
    """Checks that a file is a regular file and, if it is an archive, the sizes of its parts.

    Raises:
      UnusableFileError: it is not a regular file, or its parts are larger than the size of the file explains.
      OSError, zipfile.BadZipFile: it cannot be read.
    """
    with open_regular(path) as file:
        if file.read(4) == b"PK\x03\x04":
            file.seek(0)
            with zipfile.ZipFile(file) as members:
                check_zip(members, os.fstat(file.fileno()).st_size)


def check_arrays(path: Path, content: Any) -> None:
    """Checks the shapes of the tensors in the content of a file, before they are copied into arrays.

    Raises:
      UnusableFileError: together they are larger than the size of the file explains.
    """
    check_unpacked(path.stat().st_size, _sizes(content), "its tensors")


def _sizes(content: Any) -> Iterator[int]:
    """The bytes of each tensor in dictionaries, which may be nested."""
    waiting, seen = [content], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            if id(one) not in seen:
                seen.add(id(one))
                waiting += one.values()
        elif hasattr(one, "detach"):
            yield math.prod(one.shape) * _BYTES
