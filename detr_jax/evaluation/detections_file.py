"""Files of detections: the last validation's, and snapshots of a few images during a run.

A workdir holds ``detections.npz`` with the detections of the last validation in all images, and ``snapshots/STEP.npz``
with the detections of the model at that step in the first few images. `numpy.load` reads both kinds of files. Their
arrays are the fields of `StoredDetections`.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from detr_jax.array_files import read_arrays, write_arrays
from detr_jax.data import DataError
from detr_jax.data.labels import mapped
from detr_jax.structures import Detections

DETECTIONS = "detections.npz"
SNAPSHOTS = "snapshots"

NO_IDS: Mapping[int, int] = MappingProxyType({})
"""The category ids of data whose labels are the category ids already."""


@dataclass(frozen=True, eq=False)
class StoredDetections:
    """The detections of all queries in some images. Dimensions: ``I`` images, ``Q`` object queries."""

    step: int
    """Optimizer steps that the model was trained for."""
    image_ids: np.ndarray
    """[I] int64."""
    boxes: np.ndarray
    """[I, Q, 4] float32, xyxy in pixels of the original images; not clipped to them."""
    scores: np.ndarray
    """[I, Q] float32, probability of the label."""
    labels: np.ndarray
    """[I, Q] int32, labels of the model. A file holds category ids of the data instead, as int64."""

    @property
    def detections(self) -> Detections:
        """The detections without step and image ids."""
        return Detections(self.boxes, self.scores, self.labels)

    def first(self, number: int) -> "StoredDetections":
        """The detections in the first ``number`` images."""
        return replace(
            self,
            image_ids=self.image_ids[:number],
            boxes=self.boxes[:number],
            scores=self.scores[:number],
            labels=self.labels[:number],
        )


def write_detections(path: Path, found: StoredDetections, category_ids: Mapping[int, int] = NO_IDS) -> None:
    """Writes a file and creates its folder. The file appears only when it is complete.

    ``category_ids`` maps the labels to the category ids of the data. It is empty if the labels are the ids.

    Raises:
      WorkdirError: it cannot be written.
    """
    found = replace(found, labels=mapped(found.labels, category_ids).astype(np.int64))
    write_arrays(path, asdict(found))


def read_detections(path: Path, category_ids: Mapping[int, int] = NO_IDS) -> StoredDetections:
    """Reads a file that `write_detections` wrote with the same ``category_ids``.

    Raises:
      DataError: the file is missing or damaged.
    """
    try:
        arrays: dict[str, Any] = read_arrays(path, [field.name for field in fields(StoredDetections)])
        found = StoredDetections(**{**arrays, "step": int(arrays["step"])})
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: a validation writes it.") from None
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a file of detections ({error}): delete it.") from None
    images, queries = len(found.image_ids), found.scores.shape[-1] if found.scores.ndim else 0
    expected = ((images, queries, 4), (images, queries), (images, queries))
    if tuple(x.shape for x in (found.boxes, found.scores, found.labels)) != expected:
        raise DataError(f"{path} is not a file of detections (its arrays' shapes do not fit together): delete it.")
    labels = mapped(found.labels, {category_id: label for label, category_id in category_ids.items()})
    return replace(found, labels=labels.astype(np.int32))


def read_snapshots(workdir: Path, category_ids: Mapping[int, int] = NO_IDS) -> list[StoredDetections]:
    """The snapshots of a run in the order of their steps. Snapshots of other images than the last one's are ignored.

    Raises:
      DataError: a file is damaged.
    """
    files = [file for file in (workdir / SNAPSHOTS).glob("*.npz") if file.stem.isdigit()]
    found = [read_detections(file, category_ids) for file in sorted(files, key=lambda file: int(file.stem))]
    return [snapshot for snapshot in found if np.array_equal(snapshot.image_ids, found[-1].image_ids)]


def drop_snapshots(workdir: Path, after: int) -> None:
    """Deletes the snapshots of steps after ``after``. A run that is resumed from there takes them again."""
    for file in (workdir / SNAPSHOTS).glob("*.npz"):
        if file.stem.isdigit() and int(file.stem) > after:
            file.unlink()


def snapshot_steps(total_steps: int, number: int) -> frozenset[int]:
    """About ``number`` steps from 0 to ``total_steps``, both included, whose distances grow evenly.

    The model changes most in the beginning. For example, 32 snapshots of 5,000 steps are taken at steps 0, 5, 21, 47,
    83 ... 4682, 5000.
    """
    if not number:
        return frozenset()
    shares = np.linspace(0.0, 1.0, number) ** 2 if number > 1 else np.ones(1)
    return frozenset(np.round(shares * total_steps).astype(int).tolist())
