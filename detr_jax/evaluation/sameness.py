"""A check for models that predict the same for every query and image, because they have not learned yet."""

from collections.abc import Mapping

import numpy as np

from detr_jax.evaluation.detections_file import StoredDetections
from detr_jax.wording import counted

_NOTHING = 0.05  # if no class has a score above this, the prediction is "no object"
_SAME_BOX = 0.01  # boxes that differ by less than this share of the image's sides count as equal


def sameness(found: StoredDetections, sizes: np.ndarray, categories: Mapping[int, str]) -> str | None:
    """A warning if all queries of all images predict the same, with the usual reasons; None if they differ.

    Predictions are the same if all of them are "no object", or one class of several, or the only class with one box.

    Args:
      found: the detections of all queries in all images.
      sizes: [images, 2] original (height, width) in pixels.
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
        "is usual. If it does not change, the usual reasons are a learning rate that is too high, a training that is "
        "too short without pretrained weights, or wrong labels (detr-jax check-data)."
    )
