"""Check a data set: read every image and annotation, count the faults and describe the content."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.data.class_table import ClassRow, class_table, format_classes
from detr_jax.data.coco_panoptic import CocoPanopticDataset
from detr_jax.data.images import level_range, open_picture, orientation_matters
from detr_jax.data.own_sources import all_usable, check_image, usable_objects
from detr_jax.data.source import DataError, Faults, SizeMismatch, Source
from detr_jax.wording import counted

_SMALL, _MEDIUM = 32**2, 96**2  # COCO's limits of the area of small and medium objects, in pixels
_BINS = 8  # of height and width in the histogram
_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

Progress = Callable[[Iterable[int]], Iterable[int]]


class Report(NamedTuple):
    """The result of `check_source`. Dimension: ``n`` images."""

    faults: Faults
    """Faults of the annotations and of the images. The errors among them would stop training."""
    notes: Faults
    """Observations that are not faults but worth knowing."""
    classes: list[ClassRow]
    sizes: np.ndarray
    """[n, 2] int, (height, width) in pixels."""
    objects: np.ndarray
    """[n] int, the number of objects of each image."""
    areas: np.ndarray
    """[sum of objects] float32, the area of each box in pixels."""
    understood: str
    """A sentence that says how ambiguous annotations were interpreted; empty if there was no choice."""
    renumbered: bool
    """Whether the labels differ from the category ids."""
    masks: int | None
    """The number of masks with a pixel. None: masks were not read."""
    digests: dict[bytes, str]
    """The name of an image by the hash of its file. Of several files with the same content, it is the first name."""

    def lines(self) -> list[str]:
        """The report as lines of text for a terminal."""
        number = len(self.sizes)
        objects, classes = int(self.objects.sum()), counted(len(self.classes), "class", "classes")
        text = [f"{counted(number, 'image')}, {counted(objects, 'object')}, {classes}"]
        text += [self.understood] if self.understood else []
        if self.renumbered:
            text.append("category ids are far apart, so labels are numbered from 0; outputs have the category ids")
        if self.masks is not None:
            text.append(f"{counted(self.masks, 'mask')} with at least one pixel")
        for title, sentences in (
            ("errors, which would stop training", self.faults.error_sentences()),
            ("handled", self.faults.sentences()),
            ("to know", [*self.faults.note_sentences(), *self.notes.note_sentences(), *self.notes.sentences()]),
        ):
            if sentences:
                text += [f"{title}:", *(f"  {one.removeprefix(f'{self.faults.where}: ')}" for one in sentences)]
        if not number:
            return text
        low, median, high, maximum = np.percentile(self.objects, [0, 50, 95, 100])
        text.append(f"objects per image: {low:.0f} to {maximum:.0f}, median {median:.0f}, 95% have at most {high:.0f}")
        if len(self.areas):
            small, large = np.mean(self.areas < _SMALL), np.mean(self.areas >= _MEDIUM)
            text.append(f"boxes: {small:.0%} below 32 x 32 pixels, {large:.0%} of 96 x 96 or more")
        text += ["sizes, height down and width across, in pixels:", *_histogram(self.sizes)]
        counts = {row.label: row.objects for row in self.classes}
        text += [
            "classes (label, name, objects):",
            *format_classes({row.label: row.name for row in self.classes}, counts).split("\n"),
        ]
        if self.classes:
            text.append(f"a model for these classes has model.num_classes={self.classes[-1].label + 1} or more")
        return text


def check_source(
    source: Source, num_queries: int, *, threads: int = 0, pixels: bool = True, progress: Progress = iter
) -> Report:
    """Reads every image of a data set, and summarises its annotations.

    Args:
      source: a data set opened without ``strict``, so that faults of its annotations are counted and not raised.
      num_queries: the object queries of the model. A model finds at most this many objects in an image.
      threads: how many threads read and decode images. 0: one per processor.
      pixels: read and decode the images. If False, only the annotations are checked.
      progress: wraps the indices of the images, to show the progress.
    """
    faults, notes = source.faults, Faults(source.faults.where)
    checks: list[_ImageCheck] = []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        found = pool.map(lambda index: _check_image(source, index), range(len(source) if pixels else 0))
        for _, check in zip(progress(range(len(source))), found, strict=True) if pixels else ():
            checks.append(check)
            if check.fault is not None:
                faults.error(*check.fault)
    masks = _count_masks(checks, source, faults)
    digests = _first_names(checks, source, notes)
    _note_orientations(checks, source, notes)
    _note_levels(checks, source, faults)

    if isinstance(source, AnnotatedDataset):
        image, objects_of_all = source.all_objects()
        boxes = objects_of_all.boxes
    else:
        each = list(all_usable(source))
        image = np.repeat(np.arange(len(each)), [len(one.labels) for one in each])
        boxes = np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes for one in each)])
    objects = np.bincount(image, minlength=len(source))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    empty, many = np.flatnonzero(objects == 0), np.flatnonzero(objects > num_queries)
    if len(empty):
        notes.add_all("images without objects", len(empty), (_name(source, index) for index in empty.tolist()))
    if len(many):
        kind = f"images with more objects than the {num_queries} queries, so some objects cannot be found"
        notes.add_all(kind, len(many), (f"{_name(source, index)} has {objects[index]}" for index in many.tolist()))
    understood = source.understood if isinstance(source, AnnotatedDataset) else ""
    renumbered = bool(getattr(source, "category_ids", {}))
    sizes = np.asarray(source.sizes)
    return Report(faults, notes, class_table(source), sizes, objects, areas, understood, renumbered, masks, digests)


def note_leaks(train: Report, val: Report) -> None:
    """Adds a note to the validation report for each file with the same content as a training file."""
    for digest, name in val.digests.items():
        if digest in train.digests:
            kind = "images have the same content as a training image, so their metrics are too good"
            val.notes.add(kind, f"{name} and {train.digests[digest]}")


class _ImageCheck(NamedTuple):
    """The result of reading an image file."""

    fault: tuple[str, str] | None = None
    """Kind and sentence of the fault that makes the image unusable."""
    digest: bytes | None = None
    orientation: str | None = None
    """The result of `orientation_matters`."""
    levels: tuple[float, float] | None = None
    """The result of `level_range`."""
    masks: tuple[int, int] | None = None
    """How many masks have a pixel, and how many have none. None: masks are not read, or cannot be."""


def _check_image(source: Source, index: int) -> _ImageCheck:
    fault, masks = fault_of_image(source, index), None
    if fault is None:
        try:
            masks = _masks_of(source, index)
        except DataError as error:
            fault = "masks that cannot be read", str(error).rstrip(".")
        except Exception as error:  # any other failure must not stop the check
            fault = "masks that cannot be read", f"{_name(source, index)}: {type(error).__name__}, {error}"
    if not isinstance(source, AnnotatedDataset):
        return _ImageCheck(fault, masks=masks)
    try:
        content = source.image_bytes(index)
    except DataError:
        return _ImageCheck(fault, masks=masks)
    size = tuple(source.sizes[index].tolist())
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return _ImageCheck(fault, digest, orientation_matters(content, size), level_range(content), masks)


def _masks_of(source: Source, index: int) -> tuple[int, int] | None:
    """How many masks of an image have a pixel, and how many have none.

    Raises:
      DataError: a mask cannot be read.
    """
    masks = source.objects(index).masks
    if masks is None:
        return None
    if isinstance(source, CocoPanopticDataset):
        source.check_masks(index)
    occupied = masks.packed().any(axis=(1, 2))
    return int(occupied.sum()), int((~occupied).sum())


def _count_masks(checks: list[_ImageCheck], source: Source, faults: Faults) -> int | None:
    """The number of masks with a pixel, or None. Images with empty masks are counted."""
    found = [(index, check.masks) for index, check in enumerate(checks) if check.masks is not None]
    for index, (_, empty) in found:
        if empty:
            faults.add("images have masks without a pixel", f"{_name(source, index)} has {empty}")
    return sum(there for _, (there, _) in found) if found else None


def _first_names(checks: list[_ImageCheck], source: Source, notes: Faults) -> dict[bytes, str]:
    """The first name by digest. Further files with the same content are noted."""
    first: dict[bytes, str] = {}
    for index, check in enumerate(checks):
        if check.digest is None:
            continue
        if check.digest in first:
            kind = "images have the same content as another image"
            notes.add(kind, f"{_name(source, index)} and {first[check.digest]}")
        else:
            first[check.digest] = _name(source, index)
    return first


def _note_orientations(checks: list[_ImageCheck], source: Source, notes: Faults) -> None:
    """Notes how many images have an EXIF orientation, and which form of them has the annotated size."""
    counts = Counter(check.orientation for check in checks)
    rotated = [index for index, check in enumerate(checks) if check.orientation]
    if not rotated or not isinstance(source, AnnotatedDataset):
        return
    if source.boxes_as_displayed:
        evidence = "this format's boxes belong to the displayed image"
    else:
        evidence = (
            f"the annotated size fits the displayed image for {counts['displayed']}, the stored pixels for "
            f"{counts['stored']}, and both for {counts['open']}"
        )
    notes.add_all(
        f"images have an EXIF orientation ({evidence}; data.exif={source.exif!r})",
        len(rotated),
        (_name(source, index) for index in rotated),
    )
    if source.exif == "auto" and counts["stored"] and counts["open"] and not counts["displayed"]:
        notes.doubts.append(
            f"the annotated sizes show that the boxes belong to the stored pixels, but {counts['open']} rotated images "
            "have the same size in both forms and would be rotated: set data.exif=ignore."
        )


def _note_levels(checks: list[_ImageCheck], source: Source, faults: Faults) -> None:
    """Reports the highest level of images of more than 8 bits, if it is much lower than their files say."""
    levels = [check.levels for check in checks if check.levels]
    if not levels or not isinstance(source, AnnotatedDataset):
        return
    highest, stated = (max(column) for column in zip(*levels, strict=True))
    possible = source.max_level or stated
    needed = next((2.0**bits - 1 for bits in range(8, 17) if highest <= 2**bits - 1), highest)
    if highest and (not possible or highest <= possible / 2):
        faults.doubts.append(
            f"the highest level in {len(levels)} images of more than 8 bits is {highest:g}"
            + (f" of {possible:g}, so they are nearly black to the model" if possible else "")
            + f": set --config.data.max_level={needed:g}."
        )


def _name(source: Source, index: int) -> str:
    name = f"image {source.image_ids[index]}"
    return f"{name}, {source.file_name(index)}" if isinstance(source, AnnotatedDataset) else name


def fault_of_image(source: Source, index: int) -> tuple[str, str] | None:
    """Kind and sentence of the fault that makes an image unusable, or None."""
    try:
        sample = source[index]
        if not isinstance(source, AnnotatedDataset):
            check_image(source, index, sample.image)
            usable_objects(source, index, sample.objects)
    except SizeMismatch as error:
        return "images of another size than annotated", str(error).rstrip(".")
    except DataError as error:
        return _kind_of_fault(source, index), str(error).rstrip(".")
    except Exception as error:  # any other failure must not stop the check
        return "images that cannot be read", f"{_name(source, index)}: {type(error).__name__}, {error}"
    return None


def _kind_of_fault(source: Source, index: int) -> str:
    if not isinstance(source, AnnotatedDataset):
        return "images that cannot be read"
    try:
        content = source.image_bytes(index)
    except DataError:
        return "images that are missing"
    try:
        with open_picture(content):
            pass
    except Exception:
        return "files that are not images, or images of an unknown format"
    return "images that are truncated or damaged"


def _histogram(sizes: np.ndarray) -> list[str]:
    """A table of the numbers of images by height and width."""
    step = next((step for step in _STEPS if sizes.max() - sizes.min() < _BINS * step), sizes.max())
    first = sizes.min() // step * step
    rows, columns = ((sizes - first) // step).T
    table = np.zeros((rows.max() + 1, columns.max() + 1), np.int64)
    np.add.at(table, (rows, columns), 1)

    def label(bin_index: int) -> str:
        start = first + bin_index * step
        return f"{start}" if step == 1 else f"{start}-{start + step - 1}"

    used = [column for column in range(table.shape[1]) if table[:, column].any()]
    width = max(len(label(max(table.shape) - 1)), len(str(table.max()))) + 2
    lines = [" " * width + "".join(f"{label(column):>{width}}" for column in used)]
    lines += [
        f"{label(row):>{width}}" + "".join(f"{table[row, column] or '':>{width}}" for column in used)
        for row in range(table.shape[0])
        if table[row].any()
    ]
    return [f"  {line.rstrip()}" for line in lines]
