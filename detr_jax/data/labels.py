"""Map the category ids of a data set to the labels of a model."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

_SLACK = 100  # unused ids that are accepted before labels are numbered from 0


class TrainedLabels(NamedTuple):
    """The meaning of the labels of a trained model."""

    names: Mapping[int, str]
    """Name by label; empty if the names are unknown."""
    category_ids: Mapping[int, int]
    """Category id by label; empty if the labels are the ids."""
    stuff: frozenset[int] = frozenset()
    """Labels of the classes that are no things, such as sky."""


def are_sparse(ids: Iterable[int]) -> bool:
    """Whether category ids are so sparse that a class head should not have an output for each number up to the largest.

    COCO's 80 ids from 1 to 90 are not sparse. The labels of such data sets are the ids, as in the original DETR.
    """
    ids = set(ids)
    return bool(ids) and max(ids) >= 2 * len(ids) + _SLACK


def mapped(labels: np.ndarray, new: Mapping[int, int]) -> np.ndarray:
    """Replaces each label that ``new`` has by ``new[label]``.

    Args:
      labels: integers of any shape.
      new: new label by old label. Other labels stay unchanged.

    Returns:
      int64 labels of the same shape.
    """
    values, position = np.unique(labels, return_inverse=True)
    replaced = np.array([new.get(value, value) for value in values.tolist()], np.int64)
    return replaced[position].reshape(labels.shape)


def label_map(*category_ids: Iterable[int], known: Mapping[int, int] | None = None) -> dict[int, int] | None:
    """The label of each category id, the same for several splits, or None if the labels are the ids.

    Args:
      category_ids: the category ids of each split.
      known: the category id of each label of a trained model. It is empty if the labels are the ids, and None if there
        is no model yet. Ids that are new to the model get the labels after its last one.
    """
    ids = sorted({category_id for split in category_ids for category_id in split})
    if known is None:
        return {category_id: label for label, category_id in enumerate(ids)} if are_sparse(ids) else None
    if not known:
        return None
    labels = {category_id: label for label, category_id in known.items()}
    new = (category_id for category_id in ids if category_id not in labels)
    return labels | {category_id: label for label, category_id in enumerate(new, start=max(known) + 1)}
