"""What a detector gets wrong: classes that it confuses, and how wrong each image is."""

import numpy as np

from detr_jax.data import Objects

IOU = 0.5
"""Least overlap of a detection with the object that it is about."""


def iou_matrix(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes [n, 4] and [m, 4], in the same units: [n, m], in numpy."""
    intersection = _intersections(a_xyxy, b_xyxy)
    union = _areas(a_xyxy)[:, None] + _areas(b_xyxy)[None] - intersection
    return intersection / np.maximum(union, 1e-12)


def _intersections(a_xyxy: np.ndarray, b_xyxy: np.ndarray) -> np.ndarray:
    """The area that every pair of boxes [n, 4] and [m, 4] shares, [n, m]."""
    a, b = a_xyxy[:, None].astype(float), b_xyxy[None].astype(float)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return np.prod(np.maximum(sides, 0), axis=-1)


def _areas(xyxy: np.ndarray) -> np.ndarray:
    """The area of each box of [n, 4], [n]."""
    boxes = xyxy.astype(float)
    return np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)


def match_by_overlap(overlap: np.ndarray) -> list[tuple[int, int]]:
    """Pairs (row, column) of an overlap matrix [n, m], the largest first, each row and column once, down to `IOU`."""
    overlap = overlap.copy()
    pairs = []
    while overlap.size and overlap.max() >= IOU:
        row, column = map(int, np.unravel_index(overlap.argmax(), overlap.shape))
        pairs.append((row, column))
        overlap[row], overlap[:, column] = -1.0, -1.0
    return pairs


def outside_crowds(found: Objects, truth: Objects, crowds: Objects) -> np.ndarray:
    """Which of n detections count, [n] bool: as COCO's evaluation does, those are passed over that find no object and
    lie, by half of their area, in a crowd of their class."""
    share = _intersections(found.boxes, crowds.boxes) / np.maximum(_areas(found.boxes), 1e-12)[:, None]
    crowded = ((share >= IOU) & (found.labels[:, None] == crowds.labels[None])).any(axis=1)
    return ~crowded | (iou_matrix(found.boxes, truth.boxes) >= IOU).any(axis=1)


def confusion(truth: Objects, found: Objects, num_classes: int) -> np.ndarray:
    """Of one image, how often an object of one class (row) was found as another (column): [C + 1, C + 1] int.

    Detections and objects are matched by overlap, whatever their classes. The last column counts objects that nothing
    was found for, the last row detections where there is no object. Labels are 0 to ``num_classes`` - 1 = C - 1.
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
    """How wrong the detections of one image are: 1 - panoptic quality of the boxes, and missed plus spurious ones.

    With p pairs of one class that overlap by at least `IOU`, the quality is the sum of their overlaps over
    p + spurious / 2 + missed / 2; an image without objects and detections has error 0.

    Source: Kirillov et al., "Panoptic Segmentation" (2019), equation 1.
    """
    same = truth.labels[:, None] == found.labels[None]
    overlap = np.where(same, iou_matrix(truth.boxes, found.boxes), 0.0)
    pairs = match_by_overlap(overlap)
    wrong = len(truth.labels) + len(found.labels) - 2 * len(pairs)
    if not pairs and not wrong:
        return 0.0, 0
    return 1.0 - sum(float(overlap[pair]) for pair in pairs) / (len(pairs) + wrong / 2), wrong
