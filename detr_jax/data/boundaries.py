"""Names of files in annotations must stay inside of the folder of the data set, unless the user allows others.

A data set of a stranger could otherwise make a program read any file that its user can read. Symbolic links below the
folder may lead anywhere, because many users link the folders of their images.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from detr_jax.data.annotation_rows import shown
from detr_jax.data.source import DataError

_MAY_LEAVE = re.compile(r"^[\\/~]|^[A-Za-z]:|(^|[\\/])\.\.([\\/]|$)")


class OutsideError(DataError):
    """A file is outside of the folder of its data set."""


def may_leave(name: str) -> bool:
    """Whether a name is absolute or has ``..`` in it. Any other name stays inside of the folder that it is in."""
    return _MAY_LEAVE.search(name) is not None


def is_inside(path: str | os.PathLike[str], folders: Iterable[Path]) -> bool:
    """Whether a path is below one of some folders.

    A path with ``..`` is resolved first, because a link before it can lead elsewhere. Other paths need not be resolved
    to be below a folder, so links inside of the folder may lead anywhere.
    """
    path = os.fspath(path)
    try:
        if ".." not in Path(path).parts and any(_is_below(os.path.abspath(path), os.path.abspath(f)) for f in folders):
            return True
        return any(_is_below(os.path.realpath(path), os.path.realpath(folder)) for folder in folders)
    except (OSError, ValueError):  # the path is too long or has a null character
        return False


def check_names(names: Iterable[str], folder: Path, file: Path) -> None:
    """Checks the names of images in an annotation file, relative to the folder of the images.

    Raises:
      OutsideError: a name leads out of the folder.
    """
    for name in names:
        if may_leave(name) and not is_inside(folder / name, [folder]):
            raise OutsideError(f"{file} names the image {shown(name)}, which must be inside of {folder}.")


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)
