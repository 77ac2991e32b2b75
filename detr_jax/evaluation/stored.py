"""Detections in files: those of the last validation, and snapshots of a few images over a run.

A workdir holds ``detections.npz``, what the last validation found in all images, and ``snapshots/STEP.npz``, what the
model of that step found in the first few. `numpy.load` reads both; the arrays are the fields of `StoredDetections`.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from detr_jax.data import DataError
from detr_jax.data.labels import mapped

DETECTIONS = "detections.npz"
SNAPSHOTS = "snapshots"

NO_IDS: Mapping[int, int] = MappingProxyType({})
"""Of data whose labels are the category ids."""


class StoredDetections(NamedTuple):
    """What every query found in some images. Dimensions: ``I`` images, ``Q`` object queries."""

    step: int
    """Optimiser steps that the model had done."""
    image_ids: np.ndarray
    """[I] int64."""
    boxes: np.ndarray
    """[I, Q, 4] float32, xyxy in pixels of the original images; not clipped to them."""
    scores: np.ndarray
    """[I, Q] float32, probability of the label."""
    labels: np.ndarray
    """[I, Q] int32, labels of the model; in a file int64, category ids of the data."""


def write_detections(path: Path, found: StoredDetections, category_ids: Mapping[int, int] = NO_IDS) -> None:
    """Writes a file, whole or not at all, and the folder that it lies in.

    ``category_ids`` are those of the data by label, empty if the labels are the ids.
    """
    found = found._replace(labels=mapped(found.labels, category_ids).astype(np.int64))
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    np.savez_compressed(unfinished.open("wb"), **found._asdict())
    unfinished.replace(path)


def read_detections(path: Path, category_ids: Mapping[int, int] = NO_IDS) -> StoredDetections:
    """Reads what `write_detections` wrote, with the same ``category_ids``.

    Raises:
      DataError: the file is missing or damaged.
    """
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in StoredDetections._fields}
        found = StoredDetections(**{**arrays, "step": int(arrays["step"])})
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: a validation writes it.") from None
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no file of detections ({error}): delete it.") from None
    images, queries = len(found.image_ids), found.scores.shape[-1] if found.scores.ndim else 0
    wanted = ((images, queries, 4), (images, queries), (images, queries))
    if tuple(x.shape for x in (found.boxes, found.scores, found.labels)) != wanted:
        raise DataError(f"{path} is no file of detections (its arrays do not fit one another): delete it.")
    labels = mapped(found.labels, {category_id: label for label, category_id in category_ids.items()})
    return found._replace(labels=labels.astype(np.int32))


def read_snapshots(workdir: Path, category_ids: Mapping[int, int] = NO_IDS) -> list[StoredDetections]:
    """The snapshots of a run by step; of the same images in all of them.

    Raises:
      DataError: a file is damaged.
    """
    files = [file for file in (workdir / SNAPSHOTS).glob("*.npz") if file.stem.isdigit()]
    found = [read_detections(file, category_ids) for file in sorted(files, key=lambda file: int(file.stem))]
    return [snapshot for snapshot in found if np.array_equal(snapshot.image_ids, found[-1].image_ids)]


def drop_snapshots(workdir: Path, after: int) -> None:
    """Deletes the snapshots of steps after ``after``, which a run that goes on from there takes anew."""
    for file in (workdir / SNAPSHOTS).glob("*.npz"):
        if file.stem.isdigit() and int(file.stem) > after:
            file.unlink()


def snapshot_steps(total_steps: int, number: int) -> frozenset[int]:
    """About ``number`` steps of 0 to ``total_steps``, both included, their distance growing evenly from the first on.

    The model changes most in the beginning: of 5,000 steps, 32 snapshots are at 0, 5, 21, 47, 83 ... 4682, 5000.
    """
    if not number:
        return frozenset()
    shares = np.linspace(0.0, 1.0, number) ** 2 if number > 1 else np.ones(1)
    return frozenset(np.round(shares * total_steps).astype(int).tolist())
