"""Labels of category ids, for known data sets and for random ids."""

import numpy as np
import pytest

from detr_jax.data.coco_classes import COCO_CLASSES
from detr_jax.data.labels import label_map, mapped


def test_ids_of_common_data_sets_are_the_labels():
    for ids in (COCO_CLASSES, range(1, 1204), range(0, 3), [1], [90], [0, 90], []):
        assert label_map(ids) is None


def test_sparse_ids_get_labels_from_0_over_both_splits(rng):
    ids = np.unique(rng.integers(0, 2**52, 7)).tolist()
    train, val = ids[:5], ids[3:]
    found = label_map(train, val)
    assert found == {category_id: i for i, category_id in enumerate(ids)}
    assert label_map(val, train) == found


def test_a_model_keeps_its_labels_and_new_ids_get_the_next_ones(rng):
    ids = sorted(rng.choice(10**9, 6, replace=False).tolist())
    known = dict(enumerate(ids[::2]))
    found = label_map(ids, known=known)
    assert {category_id: label for label, category_id in known.items()}.items() <= found.items()
    assert [found[category_id] for category_id in ids[1::2]] == [3, 4, 5]
    assert label_map([1, 1_700_000_123], known={}) is None, "a model whose labels are ids stays so"


@pytest.mark.parametrize("shape", [(0,), (7,), (3, 5)])
def test_labels_are_mapped_back(rng, shape):
    labels = rng.integers(0, 4, shape)
    ids = {0: 5, 2: 2**40}
    found = mapped(labels, ids)
    assert found.shape == shape
    assert found.ravel().tolist() == [ids.get(label, label) for label in labels.ravel().tolist()]
