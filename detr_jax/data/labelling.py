"""Assign labels to the classes of data sets, and check them against a model."""

from collections.abc import Sequence

import numpy as np

from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.data.labels import TrainedLabels, label_map
from detr_jax.data.source import DataError, Source

_SHOWN = 5  # the most names in a message


def give_labels(sources: Sequence[Source], trained: TrainedLabels | None) -> None:
    """Changes the labels of data sets whose category ids cannot be the labels.

    Sparse category ids get labels from 0 on, which are the same in all sources. If there is a trained model, the labels
    of the model are used instead. Pascal VOC and labelme have class names and no ids, so their classes get the labels
    of the model by name. Classes that are new to the model get the labels after its last one.

    Args:
      sources: the splits of a data set.
      trained: the labels of the trained model, if there is one.

    Raises:
      DataError: a category id is too large for a label, and the labels of the model are category ids.
    """
    annotated = [source for source in sources if isinstance(source, AnnotatedDataset)]
    by_name = [source for source in annotated if source.labels_follow_names]
    if by_name and trained is not None and trained.names:
        for source in by_name:
            source.relabel(_by_name(source, trained), keep_ids=False)
        return
    known = None if trained is None else trained.category_ids
    label_of = label_map(*(source.categories for source in annotated), known=known)
    for source in annotated:
        if label_of:
            source.relabel(label_of)
        elif (largest := max(source.categories, default=0)) >= 2**31:
            raise DataError(
                f"{source.faults.where} has category {largest}, and the labels of this model are category ids below "
                "2**31: give the categories smaller ids."
            )


def _by_name(source: AnnotatedDataset, trained: TrainedLabels) -> dict[int, int]:
    label_of = {name: label for label, name in trained.names.items()}
    new = sorted(name for name in source.categories.values() if name not in label_of)
    label_of |= {name: label for label, name in enumerate(new, start=max(trained.names) + 1)}
    return {label: label_of[name] for label, name in source.categories.items()}


def check_classes(source: Source, num_classes: int) -> None:
    """Checks that a model of ``num_classes`` has an output for every class that has objects in a data set.

    Raises:
      DataError: the label of a class is not below ``num_classes``.
    """
    used = range(max(source.categories, default=-1) + 1)
    if isinstance(source, AnnotatedDataset):
        used = set(np.unique(source.all_objects()[1].labels).tolist())  # type: ignore[assignment]
    for label, name in source.categories.items():
        if label in used and not 0 <= label < num_classes:
            raise DataError(
                f"{source.faults.where} has category {label} ({name!r}), but model.num_classes={num_classes} only "
                f"allows labels from 0 to {num_classes - 1}: set it to {max(used) + 1} or more, or to 0 to take the "
                "number from the data."
            )


def check_same_classes(source: Source, trained: TrainedLabels) -> None:
    """Checks that labels have the same names as at the start of a run.

    Raises:
      DataError: a label has another name.
    """
    for label, name in source.categories.items():
        before = trained.names.get(label, name)
        if before.lower() != name.lower():
            raise DataError(
                f"Label {label} is {name!r} in {source.faults.where} and was {before!r} when this run was started: "
                "restore the classes of the data, or choose another --workdir."
            )


def unknown_classes(source: Source, trained: TrainedLabels) -> str | None:
    """A sentence about classes that a trained model does not know or knows by other names, or None."""
    names = trained.names
    new = [name for label, name in source.categories.items() if names and label not in names]
    other = [
        f"{label} is {names[label]!r} to the model and {name!r} in the data"
        for label, name in source.categories.items()
        if label in names and names[label].lower() != name.lower()
    ]
    if other:
        return (
            f"Note: of {len(source.categories)} labels in the data, {len(other)} have other names in the model "
            f"({', '.join(other[:3])}): are these the classes that it was trained on?"
        )
    if new:
        shown = ", ".join(map(repr, new[:_SHOWN])) + (", ..." if len(new) > _SHOWN else "")
        return f"Note: the model was not trained on {shown}, so it cannot find objects of these classes."
    return None
