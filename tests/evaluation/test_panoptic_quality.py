"""Panoptic quality against loops over the definition."""

import numpy as np
import pytest

from detr_jax.data.panoptic_png import Panoptic
from detr_jax.evaluation.panoptic_quality import PanopticStatistics


def brute_force(images, labels):
    """Panoptic, segmentation and recognition quality of each class, and their means, with loops over pairs."""
    counts = {label: [0.0, 0, 0, 0] for label in labels}
    for truth, ids, found_labels in images:
        void = truth.ids == 0
        matched_truth, matched_found = set(), set()
        for i, segment in enumerate(truth.segment_ids):
            for k, label in enumerate(found_labels):
                if truth.crowds[i] or truth.labels[i] != label:
                    continue
                g, p = truth.ids == segment, ids == k + 1
                shared = (g & p).sum()
                union = p.sum() + truth.areas[i] - shared - (void & p).sum()
                if union and shared / union > 0.5:
                    counts[label][0] += shared / union
                    counts[label][1] += 1
                    matched_truth.add(i)
                    matched_found.add(k)
        for i in range(len(truth.segment_ids)):
            if i not in matched_truth and not truth.crowds[i]:
                counts[truth.labels[i]][3] += 1
        for k, label in enumerate(found_labels):
            if k in matched_found:
                continue
            p = ids == k + 1
            ignored = (void & p).sum()
            same = [i for i in range(len(truth.segment_ids)) if truth.crowds[i] and truth.labels[i] == label]
            if same:
                ignored += ((truth.ids == truth.segment_ids[same[-1]]) & p).sum()
            if p.sum() and ignored / p.sum() > 0.5:
                continue
            counts[label][2] += 1
    found = {}
    for label, (iou, matched, spurious, missed) in counts.items():
        if matched + spurious + missed:
            total = matched + spurious / 2 + missed / 2
            found[label] = (iou / total, iou / matched if matched else 0.0, matched / total)
    return found


def random_image(rng, labels):
    """A ground truth with void and crowds, and a prediction that partly agrees with it."""
    height, width, number = 24, 30, 7
    segment_ids = rng.choice(np.arange(1, 5000), number, replace=False)
    owner = np.zeros((height, width), int)
    for k in range(1, number + 1):
        top, left = rng.integers(0, height - 4), rng.integers(0, width - 4)
        owner[top : top + rng.integers(3, 14), left : left + rng.integers(3, 16)] = k
    present = np.flatnonzero(np.bincount(owner.ravel(), minlength=number + 1)[1:])
    ids = np.concatenate([[0], segment_ids])[owner]
    truth = Panoptic(
        ids.astype(np.int32),
        segment_ids[present],
        rng.choice(labels, len(present)),
        np.array([(ids == segment_ids[i]).sum() for i in present]),
        rng.random(len(present)) < 0.25,
    )
    moved = np.roll(owner, rng.integers(0, 3, 2), axis=(0, 1))
    moved[rng.random((height, width)) < 0.05] = 0
    there = np.unique(moved[moved > 0])
    position = np.zeros(number + 1, int)
    position[there] = np.arange(1, len(there) + 1)
    by_id = dict(zip(truth.segment_ids.tolist(), truth.labels.tolist(), strict=True))
    found_labels = [by_id.get(segment_ids[k - 1], labels[0]) for k in there]
    wrong = rng.random(len(there)) < 0.2
    found_labels = np.where(wrong, rng.choice(labels, len(there)), found_labels)
    return truth, position[moved], found_labels


def test_every_class_and_the_means_are_those_of_the_definition(rng):
    labels = [3, 5, 90, 200]
    images = [random_image(rng, labels) for _ in range(25)]
    statistics = PanopticStatistics()
    for truth, ids, found_labels in images:
        statistics.add(truth, ids, found_labels)
    expected = brute_force(images, labels)
    for label in labels:
        assert statistics.of_class(label) == pytest.approx(expected[label], abs=1e-12)
    means = np.mean([expected[label] for label in labels], axis=0)
    assert statistics.mean([*labels, 7]) == pytest.approx(means, abs=1e-12)
    assert statistics.of_class(7) is None
    assert statistics.mean([7]) is None


def test_a_perfect_prediction_has_quality_1_and_a_missing_one_has_0(rng):
    truth, _, _ = random_image(rng, [1, 2])
    ids = np.zeros_like(truth.ids)
    objects = ~truth.crowds  # a crowd is no object to find, and only one crowd of a class excuses a prediction
    for k, segment in enumerate(truth.segment_ids[objects]):
        ids[truth.ids == segment] = k + 1
    perfect, nothing = PanopticStatistics(), PanopticStatistics()
    perfect.add(truth, ids, truth.labels[objects])
    nothing.add(truth, np.zeros_like(ids), np.zeros(0, int))
    for label in set(truth.labels[objects].tolist()):
        assert perfect.of_class(label) == (1.0, 1.0, 1.0)
        assert nothing.of_class(label) == (0.0, 0.0, 0.0)
