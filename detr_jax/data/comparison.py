"""Compare the training and validation splits of a data set, and record the differences."""

import os

import numpy as np

from detr_jax.data.annotated import AnnotatedDataset, AnnotatedFolder
from detr_jax.data.source import Source

_SIZE_RATIO = 2.0  # a larger ratio of the median sizes of two splits is noted


def compare_splits(train: Source, val: Source) -> None:
    """Records in the faults of ``val`` how it differs from ``train``. The labels of both must be category ids.

    A category id with two names is an error. Images in both splits, classes without training objects and a
    different median size of the images are noted.
    """
    faults = val.faults
    for label, name in val.categories.items():
        other = train.categories.get(label, name)
        if _plain(other) != _plain(name):
            faults.error(
                "categories with another name in the training split",
                f"category {label} is {name!r} here and {other!r} in {train.faults.where}; an id must have one name",
            )
        elif other != name:
            faults.note("category names are spelled differently in the training split", f"{name!r} and {other!r}")
    if not isinstance(train, AnnotatedDataset) or not isinstance(val, AnnotatedDataset):
        return
    trained = set(np.unique(train.all_objects()[1].labels).tolist())
    for label in np.unique(val.all_objects()[1].labels).tolist():
        if label not in trained:
            faults.note("classes have objects here and none in the training split", repr(val.categories[label]))
    if both := _files(train) & _files(val):
        faults.note_all("images are in the training split too, so their metrics are too good", len(both), sorted(both))
    if len(train) and len(val):
        ours, theirs = (np.median(np.sqrt(source.sizes.prod(axis=1))) for source in (val, train))
        if max(ours, theirs) > _SIZE_RATIO * min(ours, theirs):
            faults.doubts.append(
                "the images have another size than the training images (median square root of the pixels: "
                f"{ours:.0f} here, {theirs:.0f} in {train.faults.where})."
            )


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _files(source: AnnotatedDataset) -> set[str]:
    """The files of a data set as absolute paths; empty if its images are not files."""
    if not isinstance(source, AnnotatedFolder):
        return set()
    folder = os.path.abspath(source.image_folder)
    return {os.path.join(folder, source.file_name(index)) for index in range(len(source))}
