"""From 80 contiguous COCO classes to COCO's raw ids."""

import numpy as np

from detr_jax.data.coco_classes import COCO_CLASSES, NUM_COCO_LABELS

CONTIGUOUS_OUTPUTS = len(COCO_CLASSES) + 1
"""Class outputs of a model with contiguous COCO labels: the classes in the order of their ids, then "no object"."""

NEVER = -10_000.0
"""Logit of an id that no class has: its probability is 0 in float32, and still finite for a loss."""


def spread_over_coco_ids(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A class head for contiguous labels as one for raw ids, with the same probabilities.

    Args:
      kernel: [D, 81] and bias: [81], the 80 classes in the order of their ids, then "no object".

    Returns:
      kernel [D, 92] and bias [92]; ids that no class has get weights 0 and a bias of `NEVER`.
    """
    outputs = [*sorted(COCO_CLASSES), NUM_COCO_LABELS]
    wide_kernel = np.zeros((kernel.shape[0], NUM_COCO_LABELS + 1), kernel.dtype)
    wide_bias = np.full(NUM_COCO_LABELS + 1, NEVER, bias.dtype)
    wide_kernel[:, outputs] = kernel
    wide_bias[outputs] = bias
    return wide_kernel, wide_bias
