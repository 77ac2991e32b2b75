"""Read and write numpy's ``.npz`` files.

Files of unknown origin can be read: the sizes in their headers are added up before any allocation.
"""

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from detr_jax.files import UnusableFileError, check_unpacked, open_regular
from detr_jax.workdir import replace_file, writing


def read_arrays(path: str | os.PathLike[str], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file by name, by default all. Python objects are never read, because that can run code.

    Raises:
      UnusableFileError: the arrays need much more memory than the size of the file explains (`check_unpacked`), or
        another size than the file holds.
      OSError: the file cannot be read; see `open_regular`.
      KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error: the file is damaged, or lacks an array.
    """
    with open_regular(path) as file:
        _check_sizes(file)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in (arrays.files if names is None else names)}


def write_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Writes a ``.npz`` file and creates its folder. The file appears only when it is complete.

    Raises:
      WorkdirError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda temporary: np.savez_compressed(temporary, **arrays))


def _check_sizes(file: BinaryIO) -> None:
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as members:
        check_zip(members, size)
        for member in members.infolist():
            with members.open(member) as part:
                if np.lib.format.read_magic(part)[0] == 1:
                    shape, _, dtype = np.lib.format.read_array_header_1_0(part)
                else:
                    shape, _, dtype = np.lib.format.read_array_header_2_0(part)
                if math.prod(shape) * dtype.itemsize != member.file_size - part.tell():
                    raise UnusableFileError(f"{member.filename} has another size than its header says")
    file.seek(0)


def check_zip(members: zipfile.ZipFile, size: int) -> None:
    """Checks the unpacked sizes that a zip file of ``size`` bytes declares. Its reader stops at them.

    Raises:
      UnusableFileError: they are larger than the size of the file explains.
    """
    check_unpacked(size, (member.file_size for member in members.infolist()), "its parts")
