"""Find the images of a split of a YOLO data set, in folders and in lists."""

import os
from pathlib import Path
from typing import NamedTuple

from detr_jax.data.annotation_rows import shown
from detr_jax.data.boundaries import OutsideError, is_inside
from detr_jax.data.image_folders import Folder, images_in, list_folder, suffix_of
from detr_jax.data.source import DataError, Faults
from detr_jax.data.text_files import posix_path, read_lines
from detr_jax.data.yolo_layout import YoloLayout, find_below


class SplitImages(NamedTuple):
    """The images of a split."""

    paths: list[str]
    """The paths of the images, sorted by their components. Each appears once."""
    folders: list[Folder]
    """The folders of the images."""
    others: list[str]
    """Images in the folders that a list does not name."""


def split_images(layout: YoloLayout, split: str, faults: Faults) -> SplitImages:
    """Finds the images of a split. Unusual paths are counted.

    Args:
      layout: the description of the data set.
      split: the name of the split.
      faults: receives the unusual paths.

    Raises:
      DataError: the split, or one of its folders or lists, is missing, or there is no image.
    """
    paths: dict[str, None] = {}
    others: dict[str, None] = {}
    folders: list[Folder] = []
    for entry in layout.entries(split):
        path_of_entry = _entry_path(layout, split, entry, faults)
        if path_of_entry.is_dir():
            folder = list_folder(path_of_entry)
            folders.append(folder)
            paths |= dict.fromkeys(os.path.join(folder.path, name) for name in images_in(folder))
        else:
            listed, parents = _listed(path_of_entry, layout, faults)
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


def raise_outside(layout: YoloLayout) -> None:
    """Raises the `OutsideError` of a split whose images are outside of the data set, if there is one."""
    for split in layout.splits:
        try:
            split_images(layout, split, Faults(str(layout.file)))
        except OutsideError:
            raise
        except DataError:  # raised when the split is opened
            continue


def _entry_path(layout: YoloLayout, split: str, entry: str, faults: Faults) -> Path:
    """The path of the folder or list that an entry names."""
    base = layout.file.parent
    root = base / layout.root
    found = find_below(entry, [root, base], base, layout.inside)
    if found is None:
        raise DataError(
            f"{layout.file} has {split}: {entry}, but {root / entry} does not exist: correct path or {split} in that "
            "file."
        )
    path_of_entry, elsewhere = found
    if layout.root and layout.inside and root.is_dir() and not is_inside(root, layout.inside):
        faults.add(
            "paths that lead out of the data set were ignored (data.sources.yolo.allow_outside=True follows them)",
            f"path: {layout.root}, {split}: {entry} is read from {path_of_entry}",
        )
    if elsewhere or (layout.root.startswith("/") and not root.is_dir()):
        faults.add(
            "folders or lists that do not exist at the given path were found near the file",
            f"{split}: {root / entry} is read from {path_of_entry}",
        )
    return path_of_entry


def _listed(path: Path, layout: YoloLayout, faults: Faults) -> tuple[list[str], list[Folder]]:
    """The images of a list, and their folders."""
    try:
        lines = read_lines(path)
    except OSError as error:
        raise DataError(f"The list {path} cannot be read ({error}): make it a readable text file.") from None
    base = layout.file.parent
    bases = [path.parent, base / layout.root, base]
    folder_of: dict[str, str] = {}  # folder by its spelling in the list
    folders: dict[str, Folder] = {}
    names: dict[str, dict[str, str]] = {}  # file names of each folder, by name in lower case
    paths: dict[str, None] = {}
    for line in lines:
        parent, name = os.path.split(posix_path(line.strip("\"'")))
        folder = folder_of.get(parent)
        if folder is None:
            found = find_below(os.path.join(parent, name), bases, base, layout.inside)
            folder = str(found[0].parent if found else Path(path.parent, parent))
            if found is None and layout.inside and os.path.isdir(folder) and not is_inside(folder, layout.inside):
                raise OutsideError(
                    f"The list {path} names {shown(line)}, in a folder outside of the data set in {layout.inside[0]}: "
                    "set data.sources.yolo.allow_outside=True if you trust the data set."
                )
            if found and found[1]:
                faults.add("folders in lists that do not exist were found near the list", f"{parent} as {folder}")
            if found or os.path.isdir(folder):
                folder_of[parent] = folder
        if folder not in folders:
            folders[folder] = list_folder(folder, below=False)
            names[folder] = {file.lower(): file for file in folders[folder].files}
        existing = names[folder].get(name.lower(), name)
        if existing != name and not os.path.lexists(os.path.join(folder, name)):
            faults.add("listed images whose names differ in case were read", f"{name} as {existing}")
            name = existing
        full = os.path.join(folder, name)
        if full in paths:
            faults.add("images listed twice were read once", full)
        paths[full] = None
    return list(paths), list(folders.values())
