"""File names in annotations that were written on another machine, found on this one."""

import ntpath
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from detr_jax.data.image_folders import images_in, list_folder
from detr_jax.data.source import Faults

_TRIED = 20  # names that are looked for one by one before the rule is taken for all


class ImagePaths:
    """The images of a folder, by the names that annotations give them.

    Names are taken as they are if the first file is there. Otherwise the folder's files are listed once, and a name is
    read with forward slashes, or without the folders or the address before it, whichever finds its file.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def found(self, names: Sequence[str], faults: Faults) -> Sequence[str]:
        """The names below the folder that exist; a name whose file is nowhere stays as it is. Changes are counted."""
        probes = names[:: max(1, len(names) // _TRIED)]
        if all(self._exists(name) for name in probes) and not any("\\" in name for name in probes):
            return names
        below = self._below()
        candidates = (change(name) for name in probes for change in _CHANGES.values())
        if not any(name in below or self._exists(name) for name in candidates):
            return names  # none of them is here
        found = []
        for name in names:
            for how, change in _CHANGES.items():
                if (changed := change(name)) in below or self._exists(changed):
                    if how:
                        faults.add(how, name)
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
        """The files of the folder and its folders, as paths below it."""
        return set(list_folder(self.folder).files)


def unlisted(listed: Mapping[Path, Collection[str]]) -> list[str]:
    """The image files in folders that no annotations list.

    Args:
      listed: for each folder, the file names below it that are listed.
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
