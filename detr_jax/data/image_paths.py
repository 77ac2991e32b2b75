"""Find image files whose names in the annotations were written on another machine."""

import ntpath
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from detr_jax.data.annotation_rows import shown
from detr_jax.data.boundaries import is_inside, may_leave
from detr_jax.data.image_folders import images_in, list_folder
from detr_jax.data.source import Faults

_PROBES = 20  # names that are looked up before the result is assumed for all names


class ImagePaths:
    """The images of a folder, by their names in the annotations.

    Names stay unchanged if a sample of them exists. Otherwise the files of the folder are listed once. A name is then
    tried with forward slashes, without its first folder, and without all folders or its address.

    Args:
      folder: the folder of the images.
      root: the folder of the data set, which names may also lead to; by default, only the folder of the images.
      allow_outside: accept names that lead out of both folders.
    """

    def __init__(self, folder: Path, root: Path | None = None, *, allow_outside: bool = False):
        self.folder = folder
        self.allow_outside = allow_outside
        self._inside = [folder] if root is None else [root, folder]

    def found(self, names: Sequence[str], faults: Faults) -> Sequence[str]:
        """Changes each name to the path of an existing file below the folder, and counts the changes.

        A name whose file is not found stays unchanged. A name that leads out of the data set is an error, unless it is
        found in the folder after a change.
        """
        leaving = {name for name in names if self._leaves(name)}
        probes = names[:: max(1, len(names) // _PROBES)]
        if not leaving and all(self._exists(name) for name in probes) and not any("\\" in name for name in probes):
            return names
        below = self._below()
        candidates = (change(name) for name in probes for change in _CHANGES.values())
        if not leaving and not any(name in below or self._exists(name) for name in candidates):
            return names  # no change would help
        found = []
        for name in names:
            for message, change in _CHANGES.items():
                if (changed := change(name)) in below or self._exists(changed):
                    if message:
                        faults.add(message, name)
                    found.append(changed)
                    break
            else:
                if name in leaving:
                    faults.error(
                        "images outside of the data set",
                        f"the image {shown(name)} is outside of {self._inside[0]}: move it there, or set "
                        "data.sources.coco.allow_outside=True if you trust the annotations",
                    )
                found.append(ntpath.basename(name) if name in leaving else name)
        return found

    def _leaves(self, name: str) -> bool:
        return not self.allow_outside and may_leave(name) and not is_inside(self.folder / name, self._inside)

    def _exists(self, name: str) -> bool:
        try:
            return bool(name) and not self._leaves(name) and (self.folder / name).is_file()
        except (OSError, ValueError):
            return False

    def _below(self) -> set[str]:
        """All files of the folder and its sub-folders, as paths relative to it."""
        return set(list_folder(self.folder).files)


def unlisted(listed: Mapping[Path, Collection[str]]) -> list[str]:
    """The image files in folders that the annotations do not list, as paths.

    Args:
      listed: the listed file names, relative to their folder, by folder.
    """
    known = {_normal(folder, name) for folder, names in listed.items() for name in names}
    paths = (_normal(folder, name) for folder in listed for name in images_in(list_folder(folder)))
    return list(dict.fromkeys(path for path in paths if path not in known))


def _normal(folder: Path, name: str) -> str:
    path = f"{folder}/{name}"
    return os.path.abspath(os.path.join(folder, name)) if "." in (name[0], str(folder)[:1]) or "/." in path else path


def _without_first(name: str) -> str:
    return name.replace("\\", "/").partition("/")[2]


_CHANGES: dict[str, Callable[[str], str]] = {
    "": lambda name: name,
    "file names with backslashes were read with slashes": lambda name: name.replace("\\", "/"),
    "file names were read without their first folder": _without_first,
    "file names were read without their folders or address": lambda name: ntpath.basename(name.split("?")[0]),
}
