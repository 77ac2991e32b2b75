"""Match images with XML files in Pascal VOC data sets, and find the images of a split."""

import collections
import os
import re
from pathlib import Path
from typing import NamedTuple

from detr_jax.data.annotation_rows import shown
from detr_jax.data.boundaries import is_inside, may_leave
from detr_jax.data.image_folders import Folder, images_in, list_folder, stem_of, subfolder, suffix_of, unread_images
from detr_jax.data.layouts import TEST, TRAIN, VALIDATION, WHOLE, split_group
from detr_jax.data.source import DataError, Faults
from detr_jax.data.text_files import posix_path, read_lines, shortened
from detr_jax.data.voc_xml import Description, read_description

_IMAGES = ("JPEGImages", "images", "image", "imgs", "img")
_DESCRIPTIONS = ("Annotations", "annotation", "xmls", "xml", "labels", "label")
_FLAGGED = re.compile(r"^(.*\S)\s+(-1|0|1)$")


class Entry(NamedTuple):
    """An image and its XML file."""

    image: str
    """The path of the image."""
    xml: str | None
    """The path of the XML file; None if the image has none."""


class Descriptions:
    """A cache of the contents of XML files, by path. Each file is read once."""

    def __init__(self) -> None:
        self.read: dict[str, Description] = {}

    def __getitem__(self, path: str) -> Description:
        if path not in self.read:
            self.read[path] = read_description(path)
        return self.read[path]


class VocFolders(NamedTuple):
    """The folder of the images and the folder of the XML files, which may be the same."""

    images: Folder
    descriptions: Folder

    def xml_files(self) -> list[str]:
        """The XML files, as paths relative to their folder."""
        return [name for name in self.descriptions.files if suffix_of(name) == ".xml"]


def list_file_folder(root: Path) -> Path | None:
    """The folder of the lists of images, or None if the data set has none."""
    sets = subfolder(root, "ImageSets")
    if sets is None:
        return None
    return subfolder(sets, "Main") or (sets if list_files(sets) else None)


def list_files(folder: Path) -> dict[str, Path]:
    """The path of each list in a folder, by its name without suffix."""
    files = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    return {stem_of(name): folder / name for name in files if suffix_of(name) == ".txt"}


def split_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folder of the images and the folder of the XML files, for each split that has its own folders."""
    found: dict[str, tuple[Path, Path]] = {}
    images, descriptions = subfolder(root, *_IMAGES), subfolder(root, *_DESCRIPTIONS)
    for name in (*TRAIN, *VALIDATION, *TEST):
        if (folder := subfolder(root, name)) is not None:
            found[name] = folder, folder
        elif images and descriptions and (inner := subfolder(images, name)) and (xml := subfolder(descriptions, name)):
            found[name] = inner, xml
    return found


def find_folders(images: Path, descriptions: Path) -> VocFolders:
    """Finds the folders of images and of XML files.

    Args:
      images: the folder that contains the images, directly or in a sub-folder such as ``JPEGImages``.
      descriptions: the folder that contains the XML files, directly or in a sub-folder such as ``Annotations``.
    """
    image_folder = list_folder(subfolder(images, *_IMAGES) or images)
    if not images_in(image_folder) and not unread_images(image_folder):
        image_folder = list_folder(images)
    outer = subfolder(descriptions, *_DESCRIPTIONS) or descriptions
    inner = subfolder(outer, *_DESCRIPTIONS)  # for example annotations/xmls
    direct = inner is None or _has_xml(list_folder(outer, below=False))
    xml_folder = list_folder(outer if direct or inner is None else inner)
    if not _has_xml(xml_folder):
        xml_folder = list_folder(descriptions)
    return VocFolders(image_folder, xml_folder)


def _has_xml(folder: Folder) -> bool:
    return any(suffix_of(name) == ".xml" for name in folder.files)


def find_split_folders(root: Path, split: str) -> VocFolders:
    """The folders of a split of a data set without lists.

    Raises:
      DataError: the split has no folder, or its folder holds no image.
    """
    by_split = split_folders(root)
    found = next((name for name in (split, *split_group(split)) if name in by_split), None)
    if found is not None:
        folders = find_folders(*by_split[found])
    elif split in (".", WHOLE) or (root / split).is_dir():
        folder = root if split == WHOLE else root / split
        folders = find_folders(folder, folder)
    else:
        names = ", ".join(sorted(child.name for child in root.iterdir() if child.is_dir())) or "none"
        raise DataError(
            f"{root} has neither ImageSets/Main nor a folder {split} (folders: {names}): set data.train_split and "
            'data.val_split, "." for the folder itself.'
        )
    if not images_in(folders.images):
        raise DataError(f"The folder {folders.images.path} holds no image: at least one is needed.")
    return folders


def listed_entries(root: Path, lists: Path, split: str, read: Descriptions, faults: Faults) -> list[Entry]:
    """The image and the XML file of each name in the list of a split.

    Args:
      root: the folder of the data set.
      lists: the folder of the lists.
      split: the name of the split.
      read: the cache of XML files.
      faults: receives unusual names.

    Raises:
      DataError: the list does not exist or is empty, or there is no folder of images.
    """
    files = list_files(lists)
    name = next((one for one in (split, *split_group(split)) if one in files), None)
    where = lists.relative_to(root).as_posix()
    if name is None:
        raise DataError(
            f"{root} has no split {split!r} ({where} has {', '.join(files) or 'none'}): set data.train_split and "
            "data.val_split."
        )
    try:
        lines = read_lines(files[name])
    except OSError as error:
        raise DataError(f"The list {files[name]} cannot be read ({error}).") from None
    if not lines:
        raise DataError(f"The list {files[name]} is empty: at least one image is needed.")
    image_folder, xml_folder = subfolder(root, *_IMAGES), subfolder(root, *_DESCRIPTIONS)
    if image_folder is None:
        raise DataError(
            f"The image folder {root / 'JPEGImages'} does not exist: set data.root to the folder that holds it."
        )
    folders = VocFolders(list_folder(image_folder), list_folder(xml_folder or root / "Annotations"))
    images, others = _by_stem(images_in(folders.images)), _by_stem(unread_images(folders.images))
    descriptions = _by_stem(folders.xml_files())
    folded = {stem.lower(): stem for stem in (*descriptions, *images)}
    flagged = [_FLAGGED.match(line) for line in lines]
    entries: dict[str, Entry] = {}
    for line, flag in zip(lines, flagged, strict=True):
        written = [_unquoted(line)] + ([flag[1]] if flag is not None and all(flagged) else [])
        stem = _listed_stem(written, images, descriptions, folded, faults)
        if may_leave(stem) and not is_inside(os.path.join(folders.images.path, stem), [root]):
            faults.error(
                "listed images outside of the data set",
                f"{files[name]} lists {shown(line)}, which must be in {root}",
            )
            continue
        if stem in entries:
            faults.add("names listed twice were read once", f"{line} in {files[name]}")
            continue
        xml = descriptions.get(stem) or _loose(descriptions, stem) or [f"{stem}.xml"]
        xml_path = os.path.join(folders.descriptions.path, xml[0])
        found = images.get(stem) or _loose(images, stem) or _loose(others, stem)
        image = _choose(found, folders.images.path, xml_path, read, faults) if found else f"{stem}.jpg"
        entries[stem] = Entry(os.path.join(folders.images.path, image), xml_path)
    return list(entries.values())


def _loose(by_stem: dict[str, list[str]], stem: str) -> list[str]:
    """The files whose name without suffix is ``stem``, in any case."""
    return [name for other, names in by_stem.items() if other.lower() == stem.lower() for name in names]


def _unquoted(line: str) -> str:
    """A name without the quotes that Datumaro writes around names with spaces."""
    return line[1:-1].replace('\\"', '"') if len(line) > 1 and line[0] == line[-1] == '"' else line


def _listed_stem(
    written: list[str],
    images: dict[str, list[str]],
    descriptions: dict[str, list[str]],
    folded: dict[str, str],
    faults: Faults,
) -> str:
    """The path without suffix, relative to the folder of images, of the file that a line of a list names."""
    tried = [end for text in written for name in (text, posix_path(text)) for end in shortened(name)]
    tried = [name for end in tried for name in (end.removeprefix("./"), stem_of(end.removeprefix("./")))]
    for name in tried:
        if name in images or name in descriptions:
            return name
    for name in tried:
        if name.lower() in folded:
            faults.add("listed names that differ in case from the file name were read", name)
            return folded[name.lower()]
    return written[-1]


def found_entries(folders: VocFolders, read: Descriptions, faults: Faults) -> list[Entry]:
    """All images of a folder with their XML files.

    An image and its XML file have the same path relative to their folders. Otherwise, their names may differ in case,
    the XML file may give the image as its ``<filename>``, or may have the same unique name in another sub-folder.
    """
    images, left = _by_stem(images_in(folders.images)), {}
    xml_of: dict[str, str] = {}
    for name in folders.xml_files():
        stem, path = stem_of(name), os.path.join(folders.descriptions.path, name)
        if found := images.get(stem):
            _take(_choose(found, folders.images.path, path, read, faults), path, xml_of, faults)
        else:
            left[stem] = path
    if left:
        _match_loosely(left, images, folders, xml_of, read, faults)
    order = sorted(images, key=lambda stem: stem.split("/"))
    return [Entry(os.path.join(folders.images.path, name), xml_of.get(name)) for stem in order for name in images[stem]]


def _match_loosely(
    left: dict[str, str],
    images: dict[str, list[str]],
    folders: VocFolders,
    xml_of: dict[str, str],
    read: Descriptions,
    faults: Faults,
) -> None:
    """Finds the images of XML files with other names, and counts the XML files without an image."""
    names = [name for found in images.values() for name in found]
    in_any_case, by_file = collections.defaultdict(list), collections.defaultdict(list)
    by_base = collections.defaultdict(list)
    for name in names:
        in_any_case[stem_of(name).lower()].append(name)
        by_file[os.path.basename(name).lower()].append(name)
        by_base[stem_of(os.path.basename(name)).lower()].append(name)
    unread = {stem_of(os.path.basename(name)) for name in unread_images(folders.images)}  # already counted
    for stem, path in left.items():
        description = read[path]
        if not description.is_annotation:
            faults.add("XML files that are not annotations of VOC were ignored", path)
            continue
        named = posix_path(description.file_name).lower()
        choices = (
            ("XML files whose names differ in case from the image were read", in_any_case[stem.lower()]),
            (
                "XML files that name an image of another name were read",
                by_file[os.path.basename(named)] if named else [],
            ),
            (
                "XML files in other sub-folders than their images were read",
                by_base[os.path.basename(stem).lower()],
            ),
        )
        for kind, found in choices:
            free = [name for name in found if name not in xml_of]
            if len(free) == 1:
                xml_of[free[0]] = path
                faults.add(kind, f"{path} for {os.path.join(folders.images.path, free[0])}")
                break
        else:
            if stem_of(os.path.basename(path)) not in unread:
                faults.add("XML files without an image were ignored", path)


def _take(image: str, path: str, xml_of: dict[str, str], faults: Faults) -> None:
    if image in xml_of:
        faults.error(
            "images with two XML files", f"{image} has the XML files {xml_of[image]} and {path}: remove one of them"
        )
    xml_of[image] = path


def _choose(found: list[str], folder: str, xml: str, read: Descriptions, faults: Faults) -> str:
    """The image that an XML file describes. If several names differ only in the suffix, ``<filename>`` decides."""
    named = os.path.basename(posix_path(read[xml].file_name))
    if len(found) == 1:
        base = os.path.basename(found[0])
        if named and stem_of(named).lower() != stem_of(base).lower():
            other = os.path.join(folder, os.path.dirname(found[0]), named)
            if os.path.isfile(other):
                kind = "XML files whose <filename> is another image were used for the image with their own name"
                faults.add(kind, f"{xml} has <filename>{named}</filename>")
        return found[0]
    for same in (lambda name: name == named, lambda name: name.lower() == named.lower()):
        fitting = [name for name in found if same(os.path.basename(name))]
        if len(fitting) == 1:
            faults.add("XML files that fit several images by name were used for their <filename>", xml)
            return fitting[0]
    faults.error(
        "XML files that fit several images",
        f"{xml} may describe {' or '.join(found)}, and its <filename> is {named or 'missing'}: set it to one of them",
    )
    return found[0]


def _by_stem(names: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        found[stem_of(name)].append(name)
    return dict(found)
