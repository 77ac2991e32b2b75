import itertools

import numpy as np
import pytest

from detr_jax.data import Objects
from detr_jax.evaluation.errors import confusion, image_error, iou_matrix, match_by_overlap, outside_crowds


def _objects(rng, count, classes=3):
    corner = rng.uniform(0, 20, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 20, (count, 2))], axis=1).astype(np.float32)
    return Objects(boxes, rng.integers(0, classes, count))


def _iou(a, b):
    """IoU of two boxes, by hand."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _brute_force_pairs(truth, found, may_pair):
    """All pairs, largest overlap first; a pair is taken if neither of its two boxes is taken yet."""
    pairs = [
        (_iou(a.astype(float), b.astype(float)), i, j)
        for (i, a), (j, b) in itertools.product(enumerate(truth.boxes), enumerate(found.boxes))
        if may_pair(i, j)
    ]
    taken = []
    for overlap, i, j in sorted(pairs, reverse=True):
        if overlap >= 0.5 and all(i != a and j != b for _, a, b in taken):
            taken.append((overlap, i, j))
    return taken


def test_confusion_and_error_equal_brute_force(rng):
    for _ in range(30):
        truth = _objects(rng, rng.integers(0, 6))
        found = _objects(rng, rng.integers(0, 6))
        near = rng.random(len(truth.labels)) < 0.6
        found = Objects(
            np.concatenate([found.boxes, truth.boxes[near] + rng.uniform(0, 2, (near.sum(), 1)).astype(np.float32)]),
            np.concatenate([found.labels, rng.integers(0, 3, near.sum())]),
        )
        pairs = _brute_force_pairs(truth, found, lambda i, j: True)
        counts = np.zeros((4, 4), int)
        for i in range(len(truth.labels)):
            partner = [j for _, a, j in pairs if a == i]
            counts[truth.labels[i], found.labels[partner[0]] if partner else 3] += 1
        for j in set(range(len(found.labels))) - {j for _, _, j in pairs}:
            counts[3, found.labels[j]] += 1
        np.testing.assert_array_equal(confusion(truth, found, 3), counts)

        labels = truth.labels, found.labels
        same = _brute_force_pairs(truth, found, lambda i, j, labels=labels: labels[0][i] == labels[1][j])
        wrong = len(truth.labels) + len(found.labels) - 2 * len(same)
        total = len(same) + wrong / 2
        error = 1 - sum(pair[0] for pair in same) / total if total else 0.0
        assert image_error(truth, found) == (pytest.approx(error), wrong)


def test_no_detections_and_no_objects_give_known_errors(rng):
    truth, nothing = _objects(rng, 4), _objects(rng, 0)
    assert image_error(nothing, nothing) == (0.0, 0)
    assert image_error(truth, nothing) == (1.0, 4)
    assert confusion(truth, nothing, 3)[:, 3].sum() == 4
    assert match_by_overlap(iou_matrix(nothing.boxes, truth.boxes)) == []


def test_a_detection_in_a_crowd_of_its_class_that_matches_no_object_does_not_count(rng):
    def cells(box):
        """The unit squares of a box with whole corners."""
        return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))

    def whole(count):
        objects = _objects(rng, count, classes=2)
        return Objects(objects.boxes.astype(int), objects.labels)

    for _ in range(30):
        truth, crowds, found = whole(3), whole(2), whole(8)
        counts = outside_crowds(found, truth, crowds)
        for box, label, kept in zip(found.boxes, found.labels, counts, strict=True):
            own = cells(box)
            crowded = any(2 * len(own & cells(crowd)) >= len(own) for crowd in crowds.boxes[crowds.labels == label])
            finds = any(2 * len(own & cells(one)) >= len(own | cells(one)) for one in truth.boxes)
            assert kept == (finds or not crowded)
    assert outside_crowds(found, truth, whole(0)).all()
