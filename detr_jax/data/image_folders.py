"""List the files of image folders: follow links, and count the files that are ignored."""

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from PIL import Image, features

from detr_jax.data.source import Faults

_NO_PICTURES = {
    ".bufr", ".emf", ".eps", ".grib", ".h5", ".hdf", ".iim", ".mpeg", ".mpg", ".pdf", ".ps", ".wmf",
}  # fmt: skip
"""Suffixes that Pillow registers but cannot decode without other programs."""
_CODECS = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
"""The optional codec of Pillow for each format, which an installation may lack."""
_UNREAD_PICTURES = {
    ".3fr", ".ai", ".arw", ".avif", ".avifs", ".cr2", ".cr3", ".dng", ".emf", ".eps", ".erf", ".exr", ".hdr",
    ".heic", ".heics", ".heif", ".heifs", ".hif", ".jp2", ".jpx", ".jxl", ".jxr", ".kdc", ".mrw", ".nef",
    ".nrw", ".orf", ".pdf", ".pef", ".raf", ".raw", ".rw2", ".sr2", ".srw", ".svg", ".svgz", ".wdp", ".webp",
    ".wmf", ".x3f", ".xcf",
}  # fmt: skip
"""Suffixes of image formats that the installed Pillow may not decode."""
_JUNK = frozenset((".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"))
_JUNK_FOLDERS = frozenset(("__macosx", "@eadir", "$recycle.bin", "system volume information"))


class Folder(NamedTuple):
    """The content of a folder and of its sub-folders."""

    path: str
    """The path of the folder."""
    below: bool
    """Whether the sub-folders were listed too."""
    files: list[str]
    """Paths relative to ``path`` with slashes, sorted by their components. Each real file appears once."""
    junk: list[str]
    """Full paths of files and folders that macOS, Windows and storage systems create."""
    duplicates: list[str]
    """Full paths of links to files and folders that are already listed."""


def list_folder(path: str | os.PathLike[str], *, below: bool = True) -> Folder:
    """Lists the files of a folder. Symbolic links are followed, and may lead in a circle.

    Hidden folders count as junk, as do files such as ``._a.jpg``, ``.DS_Store`` and ``Thumbs.db``.

    Args:
      path: the folder.
      below: whether to list the sub-folders too.
    """
    root = os.fspath(path)
    found = Folder(root, below, [], [], [])
    real_files: set[str] = set()
    links: list[tuple[str, str]] = []
    waiting = [""]  # folders, relative to the root
    linked: list[str] = []  # folders that are links; they wait until all real folders are known
    seen: set[str] = set()
    while waiting or linked:
        name = waiting.pop() if waiting else linked.pop()
        full = os.path.join(root, name) if name else root
        real = os.path.realpath(full)
        if real in seen:
            found.duplicates.append(full)
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(full), key=lambda entry: entry.name, reverse=True)
        except OSError:
            continue
        for entry in entries:
            relative = f"{name}/{entry.name}" if name else entry.name
            if entry.is_dir():
                if not below:
                    continue
                if entry.name.startswith(".") or entry.name.lower() in _JUNK_FOLDERS:
                    found.junk.append(entry.path)
                else:
                    (linked if entry.is_symlink() else waiting).append(relative)
            elif entry.name.startswith("._") or entry.name.lower() in _JUNK:
                found.junk.append(entry.path)
            elif entry.is_symlink():
                links.append((relative, entry.path))
            else:
                found.files.append(relative)
                real_files.add(f"{real}/{entry.name}")
    for relative, full in sorted(links):
        real = os.path.realpath(full)
        if real in real_files:
            found.duplicates.append(full)
        else:
            real_files.add(real)
            found.files.append(relative)
    found.files.sort(key=lambda file: file.split("/"))
    return found


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of all image formats that the installed Pillow and its plugins decode."""
    Image.preinit()  # the usual formats are still tried first
    missing = {kind for kind, codec in _CODECS.items() if not features.check(codec)}
    registered = Image.registered_extensions().items()
    decoded = {suffix for suffix, kind in registered if kind in Image.OPEN and kind not in missing}
    return frozenset(decoded - _NO_PICTURES | {".mpo"})


def suffix_of(name: str) -> str:
    """The suffix of a file name, with its dot, in lower case."""
    return name[len(stem_of(name)) :].lower()


def stem_of(name: str) -> str:
    """A path without its last suffix."""
    dot = name.rfind(".")
    return name[:dot] if dot > name.rfind("/") + 1 else name


def images_in(folder: Folder) -> list[str]:
    """The files of a folder that are readable images, by their suffix in any case."""
    suffixes = image_suffixes()
    return [file for file in folder.files if suffix_of(file) in suffixes]


def unread_images(folder: Folder) -> list[str]:
    """The files of a folder whose suffix is of an image format that cannot be read."""
    suffixes = _UNREAD_PICTURES - image_suffixes()
    return [file for file in folder.files if suffix_of(file) in suffixes]


def count_unread(folders: Iterable[Folder], faults: Faults) -> None:
    """Counts the files that are ignored: junk, links to listed files, and images of unreadable formats."""
    for folder in folders:
        for name in unread_images(folder):
            faults.add(
                "images of formats that the installed Pillow does not read were ignored",
                os.path.join(folder.path, name),
            )
        for path in folder.junk:
            faults.add("hidden files and folders of the operating system were ignored", path)
        for path in folder.duplicates:
            faults.add("links to images or folders that are already listed were ignored", path)


def subfolder(folder: Path, *names: str) -> Path | None:
    """The first sub-folder that has one of these names in any case. An exact match comes before other cases."""
    try:
        existing = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return None
    for name in names:
        if name in existing:
            return folder / name
        for other in existing:
            if other.lower() == name.lower():
                return folder / other
    return None
