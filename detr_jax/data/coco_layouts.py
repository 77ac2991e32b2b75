"""Recognise folders with instances JSON files, as COCO and many tools write them, and find their images.

The recognised layouts are:

* COCO: ``annotations/instances_train2017.json``, ``train2017/``
* Roboflow: ``train/_annotations.coco.json`` next to the images
* CVAT: ``annotations/instances_default.json``, ``images/``
* FiftyOne: ``labels.json``, ``data/``
* Label Studio: ``result.json``, ``images/``
* labelme2coco: ``annotations.json``, ``JPEGImages/``
* any other instances JSON in the root, in ``annotations/`` or in a folder of the root
"""

import contextlib
import gzip
import ntpath
import os
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from detr_jax.config import CocoFiles
from detr_jax.data.layouts import WHOLE, Layout, in_order, meaning
from detr_jax.data.source import DataError
from detr_jax.files import LARGEST_ANNOTATIONS, open_regular, read_unzipped

_HEAD = 2**16  # bytes at either end of a JSON file that show its kind
_FOLDERS = ("images", "JPEGImages", "data", "Images", "img", "imgs")
_ROBOFLOW = "_annotations.coco.json"


class CocoSplit(NamedTuple):
    """The location of a split."""

    images: Path
    """The folder of the images."""
    annotations: Path
    """The instances JSON."""
    root: Path | None = None
    """The folder of the data set."""


def recognise(root: Path) -> Layout | None:
    """The layout of a folder with instances JSON files, or None if it has none.

    Raises:
      DataError: two files belong to the same split, or the folder of the images is not found.
    """
    files = [file for file in _candidates(root) if _is_instances(file)]
    if official := [file for file in files if file.name.startswith("instances_")]:
        files = official
    if not files:
        return None
    splits: dict[str, CocoSplit] = {}
    for file in files:
        name = _split_name(file, root, len(files) == 1)
        if name in splits:
            raise DataError(
                f"{root} has two files for the split {name!r}, {splits[name].annotations} and {file}: set "
                "data.sources.coco.train_annotations and data.sources.coco.val_annotations."
            )
        splits[name] = CocoSplit(image_folder(file, root), file, root)
    shown = ", ".join(
        f"{name} is {split.annotations.relative_to(root)} with images in {_relative(split.images, root)}"
        for name, split in ((name, splits[name]) for name in in_order(splits))
    )
    return Layout("coco", splits, f"{root} is read as COCO ({shown})")


def recognise_given(root: Path, given: CocoFiles) -> Layout | None:
    """The layout of a folder of which the configuration names some files; None if it has no instances JSON.

    Raises:
      DataError: a file that is given does not exist; or as for `recognise`.
    """
    splits, there = _given_splits(root, given), None
    if "train" in splits and "val" in splits:
        return Layout("coco", splits, f"{root} is read as COCO from the files that are given")
    if not splits:
        return recognise(root)
    with contextlib.suppress(DataError):  # what is given may be all that can be found
        there = recognise(root)
    others = {} if there is None else {n: place for n, place in there.splits.items() if meaning(n) not in splits}
    return Layout("coco", others | splits, f"{root} is read as COCO, partly from files that are given")


def _given_splits(root: Path, given: CocoFiles) -> dict[str, CocoSplit]:
    """The splits of which the configuration names the annotation file or the image folder."""
    splits = {}
    for split in ("train", "val"):
        images, annotations = getattr(given, f"{split}_images"), getattr(given, f"{split}_annotations")
        if annotations:
            file = root / annotations
            if not file.is_file():
                raise DataError(
                    f"The annotation file {file} does not exist: correct data.sources.coco.{split}_annotations."
                )
            splits[split] = CocoSplit(root / images if images else image_folder(file, root), file, root)
        elif images and (layout := recognise(root)) and (name := layout.find(split, "")):
            splits[split] = CocoSplit(root / images, layout.splits[name].annotations, root)
    return splits


def image_folder(file: Path, root: Path) -> Path:
    """The folder of the images of an instances JSON. It is found by the names of some images.

    Raises:
      DataError: no folder has one of the images.
    """
    names = _some_file_names(file)
    names = [name for name in names if not Path(_slashed(name)).is_absolute()] or names  # any folder fits these
    stem = file.stem.removesuffix(".json").removeprefix("instances_")
    subfolders = dict.fromkeys([stem, file.parent.name, meaning(stem) or "", "val" if "val" in stem else ""])
    folders = [file.parent, root, root.parent, *(base / one for base in (root, file.parent) for one in _FOLDERS)]
    nested = [folder / one for folder in folders for one in subfolders if one]
    # Two splits may use the same file names, so folders of one split come before shared folders.
    for folder in [*folders[:2], *nested, *folders[2:]]:
        if any(_is_file(folder / _slashed(name)) for name in names):
            return folder
    for folder in [*nested, *folders]:
        if any(_is_file(folder / ntpath.basename(name)) for name in names):
            return folder
    named = f"{names[0]!r}" if names else "no image"
    raise DataError(
        f"The images of {file} were not found (it lists {named}, and no folder of {root} has that file): set "
        "data.sources.coco.train_images and data.sources.coco.val_images."
    )


def _candidates(root: Path) -> Iterable[Path]:
    """The JSON files in the root and in the folders directly below it. The usual locations come first."""
    folders = [root / "annotations", root, *(child for child in sorted(root.iterdir()) if child.is_dir())]
    found: dict[Path, None] = {}
    for folder in folders:
        if folder.is_dir() and not folder.name.startswith((".", "__MACOSX")):
            names = sorted(name for name in os.listdir(folder) if name.lower().endswith((".json", ".json.gz")))
            found |= dict.fromkeys(folder / name for name in names if not name.startswith("."))
    return found


def _is_instances(file: Path) -> bool:
    """Whether a JSON file is an instances JSON, as far as its beginning and end show."""
    head, tail = _ends(file)
    if not head.lstrip("\ufeff \t\r\n").startswith("{"):
        return False
    if "panoptic" in file.name or '"segments_info"' in head or '"keypoints"' in head or '"caption"' in head:
        return False
    keys = [f'"{key}"' in head + tail for key in ("images", "annotations", "categories")]
    return sum(keys) >= 2 or (keys[0] and '"file_name"' in head)


def _ends(file: Path) -> tuple[str, str]:
    try:
        if file.name.endswith(".gz"):
            with open_regular(file) as packed, gzip.open(packed) as stream:
                return stream.read(_HEAD).decode(errors="replace"), ""
        with open_regular(file) as stream:
            head = stream.read(_HEAD)
            stream.seek(max(0, file.stat().st_size - _HEAD))
            encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8"
            return head.decode(encoding, errors="replace"), stream.read(_HEAD).decode(errors="replace")
    except (OSError, EOFError, zlib.error):
        return "", ""


def _split_name(file: Path, root: Path, only: bool) -> str:
    """The name of the split of an instances JSON. It is `WHOLE` if the only file has no name of a split."""
    if file.name == _ROBOFLOW:
        return file.parent.name if file.parent != root else WHOLE
    stem = re.sub(r"\.json$", "", file.stem).removeprefix("instances_")
    if meaning(stem):
        return stem
    if file.parent != root and meaning(file.parent.name):
        return file.parent.name
    return WHOLE if only else stem


def _some_file_names(file: Path) -> list[str]:
    head, _ = _ends(file)
    found = re.findall(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', head)
    if found:
        return [name for text in found[:20] if isinstance(name := _text(text), str)]
    try:
        content = read_unzipped(file, LARGEST_ANNOTATIONS)
        return [image.file_name for image in msgspec.json.decode(content, type=_Listing).images[:20]]
    except (OSError, EOFError, zlib.error, msgspec.DecodeError, RecursionError):
        return []


def _text(text: str) -> str | None:
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.DecodeError, UnicodeError):  # it is damaged, which is reported when the file is read
        return None


class _Named(msgspec.Struct):
    file_name: str


class _Listing(msgspec.Struct):
    images: list[_Named]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # the name is too long
        return False


def _slashed(name: str) -> str:
    return name.replace("\\", "/")


def _relative(path: Path, root: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
