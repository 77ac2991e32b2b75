"""From the masks of queries to the segments of an image, as the original does it (DETR, section 4.4).

Dimensions: ``n`` candidates, ``rows, columns`` valid cells of masks, ``H, W`` pixels of the result, ``s`` segments.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from detr_jax.masks import nearest_centers, sample_logits

LEAST_AREA = 4
"""Segments of so many pixels or fewer are dropped (the original's)."""
THRESHOLD = 0.85
"""Scores above it become segments (the original's)."""


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of an image. No two share a pixel."""

    ids: np.ndarray
    """[H, W] int32: ``k`` for the ``k``-th segment, counted from 1; 0 for pixels of none."""
    candidates: np.ndarray
    """[s] int64, the candidate that each segment comes from."""
    areas: np.ndarray
    """[s] int64, in pixels."""


def panoptic_segments(
    logits: np.ndarray,
    labels: np.ndarray,
    stuff_labels: Collection[int],
    processed_size: tuple[int, int],
    size: tuple[int, int],
    *,
    mask_threshold: float = 0.0,
) -> Segments:
    """Give every pixel to the candidate with the highest mask logit there.

    Of several candidates of one stuff class, only the first is kept. Candidates with hardly any pixel are dropped, and
    their pixels go to the others.

    Args:
      logits: [n, rows, columns] float32, mask logits of the candidates in the order of their queries.
      labels: [n] int.
      stuff_labels: labels of classes that have no separate objects, such as sky.
      processed_size: (height, width) in pixels of the image as the model saw it.
      size: (H, W) in pixels of the result.
      mask_threshold: pixels at which the highest probability is lower belong to no segment. 0: all pixels belong to
        one, as in the original.
    """
    rows, columns = (nearest_centers(old, new) for old, new in zip(processed_size, size, strict=True))

    def best_of(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The position in ``kept`` of the best candidate of each pixel, and its logit; the first of equal ones."""
        best = np.full(size, -np.inf, np.float32)
        owner = np.zeros(size, np.int32)
        for position, candidate in enumerate(kept.tolist()):
            found = sample_logits(logits[candidate], processed_size, rows, columns)
            owner[found > best] = position
            best = np.maximum(best, found)
        return owner, best

    kept = np.arange(len(labels))
    owner, best = best_of(kept)
    owner = _merged(labels, stuff_labels)[owner] if len(kept) else owner
    while len(kept):
        areas = np.bincount(owner.ravel(), minlength=len(kept))
        if (areas > LEAST_AREA).all():
            break
        kept = kept[areas > LEAST_AREA]
        owner, best = best_of(kept)
    if not len(kept):
        return Segments(np.zeros(size, np.int32), kept, np.zeros(0, np.int64))
    ids = owner + 1
    if mask_threshold > 0:
        ids[best < np.log(mask_threshold / (1 - mask_threshold))] = 0
        there = np.bincount(ids.ravel(), minlength=len(kept) + 1)[1:] > 0
        ids = np.concatenate([[0], np.where(there, np.cumsum(there), 0)])[ids]
        kept = kept[there]
    areas = np.bincount(ids.ravel(), minlength=len(kept) + 1)[1:]
    return Segments(ids.astype(np.int32), kept, areas.astype(np.int64))


def _merged(labels: np.ndarray, stuff_labels: Collection[int]) -> np.ndarray:
    """For each candidate, the first candidate of the same stuff class, or itself, [n] int32."""
    first: dict[int, int] = {}
    own = [first.setdefault(x, i) if x in stuff_labels else i for i, x in enumerate(labels.tolist())]
    return np.array(own, np.int32)
