"""A data set read from end to end: what is wrong with it, and what it is like."""

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.data.class_table import ClassRow, class_table, format_classes
from detr_jax.data.images import level_range, orientation_matters
from detr_jax.data.source import DataError, Faults, SizeMismatch, Source
from detr_jax.wording import counted

_SMALL, _MEDIUM = 32**2, 96**2  # COCO's limits of the area of small and medium objects, in pixels
_BINS = 8  # of height and width in the histogram
_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

Progress = Callable[[Iterable[int]], Iterable[int]]


class Report(NamedTuple):
    """What `check_source` found. Dimension: ``n`` images."""

    faults: Faults
    """Of the annotations and of the images; an error among them would stop a training."""
    notes: Faults
    """What is not wrong, but worth knowing."""
    classes: list[ClassRow]
    sizes: np.ndarray
    """[n, 2] int, (height, width) in pixels."""
    objects: np.ndarray
    """[n] int, the number of objects of each image."""
    areas: np.ndarray
    """[sum of objects] float32, the area of each box in pixels."""
    understood: str
    """How annotations were read that could be read in several ways; empty if there was no choice."""
    renumbered: bool
    """Whether the labels are not the category ids."""
    digests: dict[bytes, str]
    """The name of an image by a hash of its file; of files with the same content, the first."""

    def lines(self) -> list[str]:
        """The report, for a terminal."""
        number = len(self.sizes)
        objects, classes = int(self.objects.sum()), counted(len(self.classes), "class", "classes")
        text = [f"{counted(number, 'image')}, {counted(objects, 'object')}, {classes}"]
        text += [self.understood] if self.understood else []
        if self.renumbered:
            text.append("category ids are far apart, so labels were given from 0 on; outputs have the ids")
        for title, sentences in (
            ("errors, which would stop a training", self.faults.error_sentences()),
            ("handled", self.faults.sentences()),
            ("to know", [*self.faults.note_sentences(), *self.notes.note_sentences(), *self.notes.sentences()]),
        ):
            if sentences:
                text += [f"{title}:", *(f"  {one.removeprefix(f'{self.faults.where}: ')}" for one in sentences)]
        if not number:
            return text
        low, median, high, most = np.percentile(self.objects, [0, 50, 95, 100])
        text.append(f"objects of an image: {low:.0f} to {most:.0f}, median {median:.0f}, 95% have at most {high:.0f}")
        if len(self.areas):
            small, large = np.mean(self.areas < _SMALL), np.mean(self.areas >= _MEDIUM)
            text.append(f"boxes: {small:.0%} below 32 x 32 pixels, {large:.0%} of 96 x 96 or more")
        text += ["sizes, height down and width across, in pixels:", *_histogram(self.sizes)]
        counts = {row.label: row.objects for row in self.classes}
        text += [
            "classes (label, name, objects):",
            format_classes({row.label: row.name for row in self.classes}, counts),
        ]
        if self.classes:
            text.append(f"a model for these classes has model.num_classes={self.classes[-1].label + 1} or more")
        return text


def check_source(
    source: Source, num_queries: int, *, threads: int = 0, pixels: bool = True, progress: Progress = iter
) -> Report:
    """Reads every image of a data set, and sums up what its annotations say.

    Args:
      source: opened without ``strict``, so that faults of its annotations are counted and not raised.
      num_queries: object queries of the model to be trained; it finds no more objects than that in an image.
      threads: that read and decode; 0: as many as there are processors.
      pixels: read and decode the images. If False, only the annotations are checked.
      progress: is given the indices of the images, and gives them back as they are done.
    """
    faults, notes = source.faults, Faults(source.faults.where)
    looks: list[_Look] = []
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        found = pool.map(lambda index: _look(source, index), range(len(source) if pixels else 0))
        for _, look in zip(progress(range(len(source))), found, strict=True) if pixels else ():
            looks.append(look)
            if look.fault is not None:
                faults.error(*look.fault)
    digests = _compared(looks, source, notes)
    _note_orientations(looks, source, notes)
    _note_levels(looks, source, faults)

    if isinstance(source, AnnotatedDataset):
        image, objects_of_all = source.all_objects()
        boxes = objects_of_all.boxes
    else:
        each = [source.objects(index) for index in range(len(source))]
        image = np.repeat(np.arange(len(each)), [len(one.labels) for one in each])
        boxes = np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes for one in each)])
    objects = np.bincount(image, minlength=len(source))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    empty, many = np.flatnonzero(objects == 0), np.flatnonzero(objects > num_queries)
    if len(empty):
        notes.add_all("images without objects", len(empty), (_name(source, index) for index in empty.tolist()))
    if len(many):
        kind = f"images with more objects than the {num_queries} queries, of which some cannot be found"
        notes.add_all(kind, len(many), (f"{_name(source, index)} has {objects[index]}" for index in many.tolist()))
    understood = source.understood if isinstance(source, AnnotatedDataset) else ""
    renumbered = bool(getattr(source, "category_ids", {}))
    sizes = np.asarray(source.sizes)
    return Report(faults, notes, class_table(source), sizes, objects, areas, understood, renumbered, digests)


def note_leaks(train: Report, val: Report) -> None:
    """Notes in the validation report which of its files have the content of a training file."""
    for digest, name in val.digests.items():
        if digest in train.digests:
            kind = "images have the content of a training image, so their metrics are too good"
            val.notes.add(kind, f"{name} and {train.digests[digest]}")


class _Look(NamedTuple):
    """What the file of an image shows."""

    fault: tuple[str, str] | None = None
    """Kind and sentence of what keeps it from being used."""
    digest: bytes | None = None
    orientation: str | None = None
    """What `orientation_matters` says."""
    levels: tuple[float, float] | None = None
    """What `level_range` says."""


def _look(source: Source, index: int) -> _Look:
    fault = _fault_of_image(source, index)
    if not isinstance(source, AnnotatedDataset):
        return _Look(fault)
    try:
        content = source.image_bytes(index)
    except DataError:
        return _Look(fault)
    size = tuple(source.sizes[index].tolist())
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return _Look(fault, digest, orientation_matters(content, size), level_range(content))


def _compared(looks: list[_Look], source: Source, notes: Faults) -> dict[bytes, str]:
    """The first name by digest; other files with the same content are noted."""
    first: dict[bytes, str] = {}
    for index, look in enumerate(looks):
        if look.digest is None:
            continue
        if look.digest in first:
            kind = "images have the content of another image"
            notes.add(kind, f"{_name(source, index)} and {first[look.digest]}")
        else:
            first[look.digest] = _name(source, index)
    return first


def _note_orientations(looks: list[_Look], source: Source, notes: Faults) -> None:
    """How many images EXIF rotates, and what their annotated sizes say."""
    counts = Counter(look.orientation for look in looks)
    rotated = [index for index, look in enumerate(looks) if look.orientation]
    if not rotated or not isinstance(source, AnnotatedDataset):
        return
    if source.boxes_as_displayed:
        said = "this format's boxes belong to the displayed image"
    else:
        said = (
            f"the annotated size is that of the displayed image for {counts['displayed']}, of the stored pixels for "
            f"{counts['stored']}, and of both for {counts['open']}"
        )
    notes.add_all(
        f"images have an orientation in EXIF ({said}; data.exif={source.exif!r})",
        len(rotated),
        (_name(source, index) for index in rotated),
    )
    if source.exif == "auto" and counts["stored"] and counts["open"] and not counts["displayed"]:
        notes.doubts.append(
            f"the sizes say that the boxes belong to the stored pixels, and {counts['open']} images are rotated whose "
            "size "
            "does not show it: set data.exif=ignore."
        )


def _note_levels(looks: list[_Look], source: Source, faults: Faults) -> None:
    """Says how far the levels of images of more than 8 bits reach, if that is less than their files say."""
    levels = [look.levels for look in looks if look.levels]
    if not levels or not isinstance(source, AnnotatedDataset):
        return
    highest, stated = (max(column) for column in zip(*levels, strict=True))
    possible = source.max_level or stated
    needed = next((2.0**bits - 1 for bits in range(8, 17) if highest <= 2**bits - 1), highest)
    if highest and (not possible or highest <= possible / 2):
        faults.doubts.append(
            f"the levels of its {len(levels)} images of more than 8 bits reach {highest:g}"
            + (f" of {possible:g}, so they are nearly black to the model" if possible else "")
            + f": set --config.data.max_level={needed:g}."
        )


def _name(source: Source, index: int) -> str:
    name = f"image {source.image_ids[index]}"
    return f"{name}, {source.file_name(index)}" if isinstance(source, AnnotatedDataset) else name


def _fault_of_image(source: Source, index: int) -> tuple[str, str] | None:
    """Kind and sentence of what keeps an image from being used."""
    try:
        source[index]
    except SizeMismatch as error:
        return "images of another size than annotated", str(error).rstrip(".")
    except DataError as error:
        return _kind(source, index), str(error).rstrip(".")
    except Exception as error:  # whatever it is, the check continues
        return "images that cannot be read", f"{_name(source, index)}: {type(error).__name__}, {error}"
    return None


def _kind(source: Source, index: int) -> str:
    if not isinstance(source, AnnotatedDataset):
        return "images that cannot be read"
    try:
        content = source.image_bytes(index)
    except DataError:
        return "images that are missing"
    try:
        Image.open(io.BytesIO(content)).close()
    except Exception:
        return "images that are not image files, or of an unknown kind"
    return "images that are truncated or damaged"


def _histogram(sizes: np.ndarray) -> list[str]:
    """Numbers of images by height and width, in a table."""
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
