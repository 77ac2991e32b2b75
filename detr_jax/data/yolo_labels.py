"""`LabelFiles`: find the label file of each image of a YOLO data set."""

import collections
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from detr_jax.data.image_folders import Folder, list_folder, stem_of, subfolder, suffix_of, unread_images
from detr_jax.data.source import Faults
from detr_jax.data.text_files import read_any_text
from detr_jax.data.yolo_layout import IMAGE_FOLDERS

_LABEL_FOLDERS = ("labels", "label", "labelTxt", "txt", "annotations")
_OTHER_TEXTS = {
    "classes.txt", "labels.txt", "license.txt", "notes.txt", "predefined_classes.txt", "readme.txt",
    "readme.dataset.txt", "readme.roboflow.txt", "requirements.txt", "test.txt", "train.txt", "val.txt",
    "valid.txt", "validation.txt",
}  # fmt: skip
"""Text files among label files that are not label files."""


class LabelFiles:
    """The label files of images.

    The labels of ``.../images/sub/a.jpg`` are in ``.../labels/sub/a.txt``, as in Ultralytics, or next to the image. The
    folder may also be called ``Labels``, ``label``, ``labelTxt``, ``txt`` or ``annotations``. It may also be
    ``sub/labels``, or replace another folder above the image, up to ``root``. Suffixes may be in any case. Names may be
    in any case if they fit only one image.

    Args:
      root: the folder of the data set.
      folders: the folders of the images, with their sub-folders.
    """

    def __init__(self, root: Path, folders: Iterable[Folder]):
        self._root = os.path.abspath(root)
        self._folders = list(folders)
        self._listed: dict[str, dict[str, str]] = {}  # label files by folder and name without suffix
        self._used: set[str] = set()

    def of(self, images: Sequence[str], faults: Faults) -> list[str | None]:
        """The label file of each image, or None if it has none.

        Args:
          images: the paths of the images.
          faults: receives ambiguous and missing label files.
        """
        by_folder: dict[str, list[int]] = collections.defaultdict(list)
        for index, image in enumerate(images):
            by_folder[os.path.dirname(image)].append(index)
        found: list[str | None] = [None] * len(images)
        for folder, indices in by_folder.items():
            candidates = self._candidates(folder)
            stems = collections.Counter(stem_of(os.path.basename(images[index])) for index in indices)
            for index in indices:
                stem = stem_of(os.path.basename(images[index]))
                existing = [
                    self._listed[label_folder][stem]
                    for label_folder in candidates
                    if stem in self._listed[label_folder]
                ]
                if len(existing) > 1:
                    faults.add("images with label files in two folders: the first was read", "; ".join(existing))
                if existing:
                    self._used.update(existing)
                    found[index] = existing[0]
                if existing and stems[stem] > 1 and _has_rows(existing[0]):
                    faults.error(
                        "images whose names differ only in the suffix, with labels for one of them",
                        f"{images[index]} and another image, whose name differs in the suffix, both have the label "
                        f"file {existing[0]}: rename or remove one of the two",
                    )
            self._match_loosely(images, indices, found, candidates, faults)
        if images and not any(found) and set(self._listed) <= set(by_folder) and not any(self._listed.values()):
            looked = "; ".join(
                sorted({label_folder for folder in by_folder for label_folder in self._possible_folders(folder)})[:3]
            )
            faults.error(
                "splits without label files",
                f"none of the {len(images)} images has a label file in {looked}: put the labels of "
                "images/a.jpg into labels/a.txt",
            )
        return found

    def count_unused(self, faults: Faults) -> None:
        """Counts the label files without an image."""
        label_folders = dict.fromkeys(self._listed, False)
        for folder in self._folders:
            for label_folder in self._candidates(folder.path):
                label_folders[label_folder] = label_folders.get(label_folder, False) or folder.below
        real: dict[str, str] = {}  # real paths of folders; resolving each file would be slow

        def real_path(path: str) -> str:
            folder, name = os.path.split(path)
            if folder not in real:
                real[folder] = os.path.realpath(folder)
            return f"{real[folder]}/{name}"

        used = {real_path(path) for path in self._used}
        # The label files of unreadable images are not counted again.
        unread = {os.path.basename(stem_of(name)) for folder in self._folders for name in unread_images(folder)}
        for label_folder, below in sorted(label_folders.items()):
            for name in list_folder(label_folder, below=below).files:
                path = f"{label_folder}/{name}"
                if suffix_of(name) != ".txt" or real_path(path) in used:
                    continue
                used.add(real_path(path))
                base = os.path.basename(name)
                if base.lower() not in _OTHER_TEXTS and stem_of(base) not in unread:
                    faults.add("label files without an image were ignored", path)

    def ignore(self, images: Iterable[str]) -> None:
        """Marks the label files of images that are not in the split as used."""
        for image in images:
            stem = stem_of(os.path.basename(image))
            for label_folder in self._candidates(os.path.dirname(image)):
                if stem in self._listed[label_folder]:
                    self._used.add(self._listed[label_folder][stem])

    def _match_loosely(
        self, images: Sequence[str], indices: list[int], found: list[str | None], candidates: list[str], faults: Faults
    ) -> None:
        """Finds label files whose names differ in case, or contain the suffix of the image (a.jpg.txt)."""
        without = [index for index in indices if found[index] is None]
        if not without:
            return
        loose: dict[str, list[str]] = collections.defaultdict(list)
        for label_folder in candidates:
            for stem, path in self._listed[label_folder].items():
                if path not in self._used and os.path.basename(path).lower() not in _OTHER_TEXTS:
                    loose[stem.lower()].append(path)
        if not loose:
            return
        for index in without:
            name = os.path.basename(images[index]).lower()
            existing = loose.get(stem_of(name)) or loose.get(name) or []
            if len(existing) == 1 and existing[0] not in self._used:
                self._used.add(existing[0])
                found[index] = existing[0]
                faults.add("label files whose names differ in case or suffix from the image were read", existing[0])

    def _candidates(self, folder: str) -> list[str]:
        """The existing folders that may hold the labels of the images in a folder. Their files are listed."""
        label_folders = [label_folder for label_folder in self._possible_folders(folder) if os.path.isdir(label_folder)]
        label_folders = list(
            {os.path.realpath(label_folder): label_folder for label_folder in reversed(label_folders)}.values()
        )[::-1]
        for label_folder in label_folders:
            if label_folder not in self._listed:
                self._listed[label_folder] = {
                    stem_of(name): f"{label_folder}/{name}"
                    for name in list_folder(label_folder, below=False).files
                    if suffix_of(name) == ".txt"
                }
        return label_folders

    def _possible_folders(self, folder: str) -> list[str]:
        parts = Path(folder).parts
        named = [i for i in reversed(range(len(parts))) if parts[i].lower() in IMAGE_FOLDERS]
        others = [
            i
            for i in reversed(range(len(parts)))
            if i not in named and os.path.abspath(Path(*parts[: i + 1])).startswith(self._root + os.sep)
        ]
        mirrored = [label_folder for i in named for label_folder in _mirrored(parts, i)]
        inner = subfolder(Path(folder), *_LABEL_FOLDERS)
        return [*mirrored, folder, *([str(inner)] if inner else []), *(p for i in others for p in _mirrored(parts, i))]


def _mirrored(parts: tuple[str, ...], index: int) -> list[str]:
    """The path with component ``index`` replaced by a folder of labels. If there is none, it is ``labels``."""
    parent = Path(*parts[:index]) if index else Path()
    existing = subfolder(parent, *_LABEL_FOLDERS)
    return [str(Path(existing or parent / "labels", *parts[index + 1 :]))]


def _has_rows(path: str) -> bool:
    try:
        return bool(read_any_text(path).strip())
    except OSError:
        return True
