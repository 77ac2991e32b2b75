"""Mistakes of a detector: confused classes, and the error of each image."""

import numpy as np

from detr_jax.boxes import area, intersection_area, iou
from detr_jax.data import Objects

IOU = 0.5
"""Smallest IoU at which a detection matches an object."""


def iou_matrix(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes [n, 4] and [m, 4], in the same units: [n, m] float64."""
    return iou(a_xyxy[:, None].astype(float), b_xyxy[None].astype(float))


def match_by_overlap(overlap: np.ndarray) -> list[tuple[int, int]]:
    """Matches rows and columns of an overlap matrix [n, m] greedily, the largest overlap first.

    Returns:
      Pairs (row, column) with an overlap of at least `IOU`. Each row and column occurs at most once.
    """
    overlap = overlap.copy()
    pairs = []
    while overlap.size and overlap.max() >= IOU:
        row, column = map(int, np.unravel_index(overlap.argmax(), overlap.shape))
        pairs.append((row, column))
        overlap[row], overlap[:, column] = -1.0, -1.0
    return pairs


def outside_crowds(found: Objects, truth: Objects, crowds: Objects) -> np.ndarray:
    """Which of n detections count, [n] bool.

    Like COCO's evaluation, this ignores a detection that matches no object if at least half of its area lies in a
    crowd of its class.
    """
    boxes = found.boxes[:, None].astype(float)
    share = intersection_area(boxes, crowds.boxes[None].astype(float)) / np.maximum(area(boxes), 1e-12)
    crowded = ((share >= IOU) & (found.labels[:, None] == crowds.labels[None])).any(axis=1)
    return ~crowded | (iou_matrix(found.boxes, truth.boxes) >= IOU).any(axis=1)


def confusion(truth: Objects, found: Objects, num_classes: int) -> np.ndarray:
    """Counts how often objects of a class (row) were detected as a class (column) in one image: [C + 1, C + 1] int.

    Detections and objects are matched by overlap only, not by class. The last column counts objects without a
    detection. The last row counts detections without an object. Labels are in 0 to ``num_classes`` - 1 = C - 1.
    """
    counts = np.zeros((num_classes + 1, num_classes + 1), int)
    pairs = match_by_overlap(iou_matrix(truth.boxes, found.boxes))
    for i, j in pairs:
        counts[truth.labels[i], found.labels[j]] += 1
    missed = np.delete(truth.labels, [i for i, _ in pairs])
    spurious = np.delete(found.labels, [j for _, j in pairs])
    np.add.at(counts[:, num_classes], missed, 1)
    np.add.at(counts[num_classes], spurious, 1)
    return counts


def image_error(truth: Objects, found: Objects) -> tuple[float, int]:
    """The error of the detections in one image.

    An object and a detection of the same class are paired if their overlap is at least `IOU`. With p pairs, the
    panoptic quality is the sum of their overlaps divided by p + spurious / 2 + missed / 2.

    Returns:
      1 - panoptic quality, which is 0 for an image without objects and detections, and the number of missed objects
      plus the number of spurious detections.

    Source: Kirillov et al., "Panoptic Segmentation" (2019), equation 1.
    """
    same = truth.labels[:, None] == found.labels[None]
    overlap = np.where(same, iou_matrix(truth.boxes, found.boxes), 0.0)
    pairs = match_by_overlap(overlap)
    wrong = len(truth.labels) + len(found.labels) - 2 * len(pairs)
    if not pairs and not wrong:
        return 0.0, 0
    return 1.0 - sum(float(overlap[pair]) for pair in pairs) / (len(pairs) + wrong / 2), wrong
