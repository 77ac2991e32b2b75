from dataclasses import replace

import numpy as np
import pytest

from detr_jax.evaluation.detections_file import StoredDetections
from detr_jax.evaluation.sameness import sameness

NAMES = {3: "cat", 7: "dog"}


def _found(rng, images=4, queries=6):
    """Detections with different boxes, scores and labels, and the sizes of their images."""
    sizes = rng.integers(50, 400, (images, 2))
    shares = rng.uniform(0, 1, (images, queries, 4))
    labels = rng.permuted(np.resize([3, 7], images * queries)).reshape(images, queries)
    scores = rng.uniform(0.1, 1, (images, queries)).astype(np.float32)
    boxes = (shares * sizes[:, None, [1, 0, 1, 0]]).astype(np.float32)
    return StoredDetections(5, np.arange(images), boxes, scores, labels.astype(np.int32)), sizes


def _one_box(found, sizes, rng):
    """The detections with one box, in normalised coordinates, for all queries and images."""
    shares = np.broadcast_to(rng.uniform(0, 1, 4), found.boxes.shape)
    return replace(found, boxes=(shares * sizes[:, None, [1, 0, 1, 0]]).astype(np.float32))


def test_predictions_that_differ_are_not_reported(rng):
    found, sizes = _found(rng)
    assert sameness(found, sizes, NAMES) is None
    assert sameness(_one_box(found, sizes, rng), sizes, NAMES) is None  # the classes differ
    assert sameness(found.first(0), sizes[:0], NAMES) is None
    single = replace(found, boxes=found.boxes[:, :1], scores=found.scores[:, :1], labels=found.labels[:, :1])
    assert sameness(single, sizes, NAMES) is None


@pytest.mark.parametrize("same_box", [False, True])
def test_one_class_or_no_object_for_all_queries_is_reported_and_so_is_an_equal_box(rng, same_box):
    found, sizes = _found(rng)
    found = _one_box(found, sizes, rng) if same_box else found
    one_class = replace(found, labels=np.full_like(found.labels, 7))
    sentence = sameness(one_class, sizes, NAMES)
    assert "All queries of 4 validation images say 'dog'" in sentence
    assert ("with the same box" in sentence) == same_box
    sentence = sameness(replace(found, scores=found.scores * 0.04), sizes, NAMES)
    assert 'say "no object"' in sentence
    assert ("with the same box" in sentence) == same_box
    in_one_image = one_class.labels.copy()
    in_one_image[rng.integers(4), rng.integers(6)] = 3
    assert sameness(replace(found, labels=in_one_image), sizes, NAMES) is None


def test_the_only_class_of_the_data_is_reported_only_if_all_boxes_are_equal(rng):
    found, sizes = _found(rng)
    found = replace(found, labels=np.full_like(found.labels, 3))
    assert sameness(found, sizes, {3: "cat"}) is None
    assert "'cat' with the same box" in sameness(_one_box(found, sizes, rng), sizes, {3: "cat"})
