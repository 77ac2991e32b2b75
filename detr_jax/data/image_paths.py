"""Find image files whose names in the annotations were written on another machine."""

import ntpath
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from detr_jax.data.image_folders import images_in, list_folder
from detr_jax.data.source import Faults

_PROBES = 20  # names that are looked up before the result is assumed for all names


class ImagePaths:
    """The images of a folder, by their names in the annotations.

    Names stay unchanged if a sample of them exists. Otherwise the files of the folder are listed once. A name is then
    tried with forward slashes, without its first folder, and without all folders or its address.

    Args:
      folder: the folder of the images.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def found(self, names: Sequence[str], faults: Faults) -> Sequence[str]:
        """Changes each name to the path of an existing file below the folder, and counts the changes.

        A name whose file is not found stays unchanged.
        """
        probes = names[:: max(1, len(names) // _PROBES)]
        if all(self._exists(name) for name in probes) and not any("\\" in name for name in probes):
            return names
        below = self._below()
        candidates = (change(name) for name in probes for change in _CHANGES.values())
        if not any(name in below or self._exists(name) for name in candidates):
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
                found.append(name)
        return found

    def _exists(self, name: str) -> bool:
        try:
            return bool(name) and (self.folder / name).is_file()
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
