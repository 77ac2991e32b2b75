"""The images that a split of a YOLO data set names: those of folders, and those of lists."""

import os
from pathlib import Path
from typing import NamedTuple

from detr_jax.data.image_folders import Folder, images_in, list_folder, suffix_of
from detr_jax.data.source import DataError, Faults
from detr_jax.data.text_files import posix_path, read_lines
from detr_jax.data.yolo_layout import YoloLayout, find_below


class SplitImages(NamedTuple):
    """The images of a split."""

    paths: list[str]
    """In order of their parts, each once."""
    folders: list[Folder]
    """Where they are; of a list, the folders of its images."""
    others: list[str]
    """Images in these folders that are not listed."""


def split_images(layout: YoloLayout, split: str, faults: Faults) -> SplitImages:
    """Finds the images of a split; what is read in an unusual way is counted.

    Raises:
      DataError: the split, or a folder or list that it names, is missing, or there is no image.
    """
    paths: dict[str, None] = {}
    others: dict[str, None] = {}
    folders: list[Folder] = []
    for entry in layout.entries(split):
        place = _place(layout, split, entry, faults)
        if place.is_dir():
            folder = list_folder(place)
            folders.append(folder)
            paths |= dict.fromkeys(os.path.join(folder.path, name) for name in images_in(folder))
        else:
            listed, parents = _listed(place, layout, faults)
            folders += parents
            paths |= dict.fromkeys(listed)
            others |= dict.fromkeys(os.path.join(parent.path, name) for parent in parents for name in images_in(parent))
    if not paths:
        kinds = sorted({suffix_of(name) or "no suffix" for folder in folders for name in folder.files})
        there = f" (its files end in {', '.join(kinds[:8])})" if kinds else ""
        raise DataError(f"{layout.file} names no image under {split!r}{there}: give a folder with images.")
    return SplitImages(
        sorted(paths, key=lambda path: path.split(os.sep)), folders, [path for path in others if path not in paths]
    )


def _place(layout: YoloLayout, split: str, entry: str, faults: Faults) -> Path:
    """The folder or list that an entry names."""
    base = layout.file.parent
    root = base / layout.root
    found = find_below(entry, [root, base], base)
    if found is None:
        raise DataError(
            f"{layout.file} has {split}: {entry}, and there is no {root / entry}: correct path or {split} in that file."
        )
    place, elsewhere = found
    if elsewhere or (layout.root.startswith("/") and not root.is_dir()):
        faults.add(
            "folders or lists that do not exist as they are written were found near the file",
            f"{split}: {root / entry} is read from {place}",
        )
    return place


def _listed(path: Path, layout: YoloLayout, faults: Faults) -> tuple[list[str], list[Folder]]:
    """The images of a list, and the folders that they are in."""
    try:
        lines = read_lines(path)
    except OSError as error:
        raise DataError(f"The list {path} cannot be read ({error}).") from None
    base = layout.file.parent
    bases = [path.parent, base / layout.root, base]
    places: dict[str, str] = {}  # folder by how it is written
    folders: dict[str, Folder] = {}
    names: dict[str, dict[str, str]] = {}  # of the files in each folder, by name in lower case
    paths: dict[str, None] = {}
    for line in lines:
        parent, name = os.path.split(posix_path(line.strip("\"'")))
        place = places.get(parent)
        if place is None:
            found = find_below(os.path.join(parent, name), bases, base)
            place = str(found[0].parent if found else Path(path.parent, parent))
            if found and found[1]:
                faults.add("folders in lists that do not exist were found near the list", f"{parent} as {place}")
            if found or os.path.isdir(place):
                places[parent] = place
        if place not in folders:
            folders[place] = list_folder(place, below=False)
            names[place] = {file.lower(): file for file in folders[place].files}
        there = names[place].get(name.lower(), name)
        if there != name and not os.path.lexists(os.path.join(place, name)):
            faults.add("listed images whose names differ in case were read", f"{name} as {there}")
            name = there
        full = os.path.join(place, name)
        if full in paths:
            faults.add("images listed twice were read once", full)
        paths[full] = None
    return list(paths), list(folders.values())
