"""Detections that say the same of everything, as those of a model do that has not learnt to tell objects apart."""

from collections.abc import Mapping

import numpy as np

from detr_jax.evaluation.detections_file import StoredDetections
from detr_jax.wording import counted

_NOTHING = 0.05  # no class reaches this score: the answer is "no object"
_SAME_BOX = 0.01  # of the image's sides: the most that boxes differ which are called the same


def sameness(found: StoredDetections, sizes: np.ndarray, categories: Mapping[int, str]) -> str | None:
    """A sentence if all queries of all images give the same answer, with what that usually means; None if they differ.

    The same answer is "no object", or one class of several, or one class with one box.

    Args:
      found: the detections of all queries in all images.
      sizes: [images, 2] (height, width) in pixels of these images.
      categories: names of the data's labels.
    """
    if not found.scores.size or found.scores.shape[1] < 2:
        return None
    shares = found.boxes / np.asarray(sizes, float)[:, None, [1, 0, 1, 0]]
    same_box = float(np.ptp(shares, axis=(0, 1)).max()) < _SAME_BOX
    labels = np.unique(found.labels)
    highest = float(found.scores.max())
    if highest < _NOTHING:
        answer = f'"no object" (no class has a score above {highest:.2g})'
    elif len(labels) == 1 and (same_box or len(categories) > 1):
        answer = repr(categories.get(int(labels[0]), str(labels[0])))
    else:
        return None
    box = " with the same box" if same_box else ""
    return (
        f"All queries of {counted(len(found.scores), 'validation image')} say {answer}{box}. In the first epochs this "
        "is usual. If it stays, the learning rate is usually too high, the training too short for a start without "
        "pretrained weights, or the labels are wrong (detr-jax check-data)."
    )
