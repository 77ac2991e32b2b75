"""Panoptic quality of segments (Kirillov et al., "Panoptic Segmentation", 2019, equation 1; panopticapi).

Dimensions: ``H, W`` pixels, ``s`` predicted segments.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from detr_jax.data.panoptic_png import Panoptic

IOU = 0.5
"""A segment matches one of the ground truth if their IoU is above it."""


class PanopticStatistics:
    """Matches, and what was missed or spurious, of all images that were added, by label."""

    def __init__(self) -> None:
        self.iou: defaultdict[int, float] = defaultdict(float)
        """The sum of the IoUs of matches."""
        self.matched: defaultdict[int, int] = defaultdict(int)
        self.spurious: defaultdict[int, int] = defaultdict(int)
        self.missed: defaultdict[int, int] = defaultdict(int)

    def add(self, truth: Panoptic, ids: np.ndarray, labels: np.ndarray) -> None:
        """Compare the segments of an image with the ground truth.

        Args:
          truth: the ground truth.
          ids: [H, W] int, ``k`` for the ``k``-th predicted segment, counted from 1; 0 for none.
          labels: [s] int, the label of each predicted segment.
        """
        numbers = np.concatenate([[0], truth.segment_ids])
        order = np.argsort(numbers)
        position = order[np.searchsorted(numbers[order], truth.ids)]  # 0 for void, k for the k-th segment
        columns = len(labels) + 1
        common = np.bincount((position * columns + ids).ravel(), minlength=len(numbers) * columns)
        common = common.reshape(len(numbers), columns)  # pixels of each pair, void first
        areas = common.sum(axis=0)
        void = common[0]

        true_labels, crowds = truth.labels.tolist(), truth.crowds.tolist()
        matched_truth, matched_found = set(), set()
        for i, k in np.argwhere(common[1:, 1:] > 0).tolist():
            label = true_labels[i]
            if crowds[i] or label != int(labels[k]):
                continue
            shared = int(common[i + 1, k + 1])
            union = int(areas[k + 1]) + int(truth.areas[i]) - shared - int(void[k + 1])
            if union and shared / union > IOU:
                self.iou[label] += shared / union
                self.matched[label] += 1
                matched_truth.add(i)
                matched_found.add(k)

        crowd_of: dict[int, int] = {}
        for i, label in enumerate(true_labels):
            if crowds[i]:
                crowd_of[label] = i  # the last one, as in panopticapi
            elif i not in matched_truth:
                self.missed[label] += 1
        for k, label in enumerate(np.asarray(labels).tolist()):
            if k in matched_found:
                continue
            ignored = int(void[k + 1])
            if label in crowd_of:
                ignored += int(common[crowd_of[label] + 1, k + 1])
            if areas[k + 1] and ignored / int(areas[k + 1]) > IOU:
                continue
            self.spurious[label] += 1

    def of_class(self, label: int) -> tuple[float, float, float] | None:
        """Panoptic, segmentation and recognition quality of a class in 0..1; None if it never occurs."""
        matched, spurious, missed = self.matched[label], self.spurious[label], self.missed[label]
        if not matched + spurious + missed:
            return None
        total = matched + spurious / 2 + missed / 2
        return self.iou[label] / total, self.iou[label] / matched if matched else 0.0, matched / total

    def mean(self, labels: Iterable[int]) -> tuple[float, float, float] | None:
        """The means of the three qualities over the classes that occur; None if none occurs."""
        found = [qualities for label in labels if (qualities := self.of_class(label)) is not None]
        if not found:
            return None
        panoptic, segmentation, recognition = (sum(column) / len(found) for column in zip(*found, strict=True))
        return panoptic, segmentation, recognition
