"""Labels of a model for the category ids of a data set."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

_SLACK = 100  # ids that may be unused before labels are counted from 0


class TrainedLabels(NamedTuple):
    """What the labels of a trained model mean."""

    names: Mapping[int, str]
    """Name by label; empty if they are not known."""
    category_ids: Mapping[int, int]
    """Category id by label; empty if the labels are the ids."""


def are_sparse(ids: Iterable[int]) -> bool:
    """Whether category ids are so large that a class head must not have an output for each number up to the largest.

    COCO's ids, 80 of 1 to 90, are not: labels of such sets are the ids, as in the original.
    """
    ids = set(ids)
    return bool(ids) and max(ids) >= 2 * len(ids) + _SLACK


def mapped(labels: np.ndarray, new: Mapping[int, int]) -> np.ndarray:
    """Labels of any shape with ``new[label]`` for each label that ``new`` has; int64."""
    values, place = np.unique(labels, return_inverse=True)
    images = np.array([new.get(value, value) for value in values.tolist()], np.int64)
    return images[place].reshape(labels.shape)


def label_map(*category_ids: Iterable[int], known: Mapping[int, int] | None = None) -> dict[int, int] | None:
    """The label of each category id of several splits together; None if the labels are the ids.

    Args:
      category_ids: those of each split.
      known: the category id of each label of a trained model, empty if its labels are the ids, None if there is no
        model yet. Ids that the model does not know get the labels behind its own.
    """
    ids = sorted({category_id for split in category_ids for category_id in split})
    if known is None:
        return {category_id: label for label, category_id in enumerate(ids)} if are_sparse(ids) else None
    if not known:
        return None
    labels = {category_id: label for label, category_id in known.items()}
    new = (category_id for category_id in ids if category_id not in labels)
    return labels | {category_id: label for label, category_id in enumerate(new, start=max(known) + 1)}
