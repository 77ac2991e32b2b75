"""A data set looked through from end to end: what is wrong with it, and what it is like."""

import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.data.class_table import ClassRow, class_table, format_classes
from detr_jax.data.source import DataError, Faults, SizeMismatch, Source

_SMALL, _MEDIUM = 32**2, 96**2  # COCO's limits of the area of small and medium objects, in pixels
_BINS = 8  # of height and width in the histogram
_STEPS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

Progress = Callable[[Iterable[int]], Iterable[int]]


class Report(NamedTuple):
    """What `check_source` found. Dimension: ``n`` images."""

    faults: Faults
    """Of the annotations and of the images; with an error among them a training would end."""
    notes: Faults
    """What is not wrong, but worth knowing."""
    classes: list[ClassRow]
    sizes: np.ndarray
    """[n, 2] int, (height, width) in pixels."""
    objects: np.ndarray
    """[n] int, the number of objects of each image."""
    areas: np.ndarray
    """[sum of objects] float32, the area of each box in pixels."""

    def lines(self) -> list[str]:
        """The report, for a terminal."""
        number = len(self.sizes)
        text = [f"{number} images, {int(self.objects.sum())} objects, {len(self.classes)} classes"]
        for title, sentences in (
            ("errors, which would end a training", self.faults.error_sentences()),
            ("mended", self.faults.sentences()),
            ("to know", self.notes.sentences()),
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


def check_source(source: Source, num_queries: int, *, threads: int = 0, progress: Progress = iter) -> Report:
    """Reads every image of a data set, and sums up what its annotations say.

    Args:
      source: opened without ``strict``, so that faults of its annotations are counted and not raised.
      num_queries: object queries of the model to be trained; it finds no more objects than that in an image.
      threads: that read and decode; 0: as many as there are processors.
      progress: is given the indices of the images, and gives them back as they are done.
    """
    faults, notes = source.faults, Faults(source.faults.where)
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        found = pool.map(lambda index: _fault_of_image(source, index), range(len(source)))
        for _, fault in zip(progress(range(len(source))), found, strict=True):
            if fault is not None:
                faults.error(*fault)

    objects = np.zeros(len(source), np.int64)
    areas: list[np.ndarray] = [np.zeros(0, np.float32)]
    for index in range(len(source)):
        boxes, labels = source.objects(index)
        objects[index] = len(labels)
        areas.append((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        if not len(labels):
            notes.add("images without objects", _name(source, index))
        if len(labels) > num_queries:
            kind = f"images with more objects than the {num_queries} queries, of which some cannot be found"
            notes.add(kind, f"{_name(source, index)} has {len(labels)}")
    return Report(faults, notes, class_table(source), np.asarray(source.sizes), objects, np.concatenate(areas))


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
    except Exception as error:  # whatever it is, the check goes on
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
        return "images that are no image files, or of an unknown kind"
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
