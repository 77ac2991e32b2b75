"""Changes to a converted model for `Layout.finish`: the order of channels, and the labels of COCO's classes."""

import dataclasses
import re

import numpy as np

from detr_jax.config import DeformableDETRConfig
from detr_jax.data.coco_classes import COCO_CLASSES, NUM_COCO_LABELS
from detr_jax.weights.layout import ConvertedModel
from detr_jax.weights.metadata import Metadata

CONTIGUOUS_OUTPUTS = len(COCO_CLASSES) + 1
"""Class outputs of a model with contiguous COCO labels: the classes in the order of their ids, then "no object"."""

UNUSED_LOGIT = -10_000.0
"""Logit of an id without a class. Its probability is 0 in float32, and the logit is still finite for a loss."""

_FIRST_CONVOLUTION = "backbone/stem/conv/conv/kernel"


def to_rgb(model: ConvertedModel, metadata: Metadata) -> ConvertedModel:
    """Reverses the input channels of the first convolution if the model expects blue, green, red."""
    if not metadata.bgr:
        return model
    kernel = np.ascontiguousarray(model.params[_FIRST_CONVOLUTION][:, :, ::-1])
    note = "It was trained on blue, green, red: its first convolution was changed to take red, green, blue."
    return dataclasses.replace(model, params={**model.params, _FIRST_CONVOLUTION: kernel}, notes=(*model.notes, note))


def to_coco_ids(model: ConvertedModel, _: Metadata) -> ConvertedModel:
    """Turns a class head for 80 contiguous COCO labels into one for COCO's raw ids, unless classes have other names."""
    if model.config.num_classes + 1 != CONTIGUOUS_OUTPUTS or model.class_names:
        return model
    kernel, bias = spread_over_coco_ids(model.params["class_head/kernel"], model.params["class_head/bias"])
    note = (
        f"The class head's {CONTIGUOUS_OUTPUTS} outputs (80 contiguous COCO classes and no object) became "
        f"{bias.size}: labels are now COCO's raw ids."
    )
    return ConvertedModel(
        config=dataclasses.replace(model.config, num_classes=bias.size - 1),
        params={**model.params, "class_head/kernel": kernel, "class_head/bias": bias},
        class_names=dict(COCO_CLASSES),
        notes=(*model.notes, note),
    )


def to_rgb_and_coco_ids(model: ConvertedModel, metadata: Metadata) -> ConvertedModel:
    """Both changes, for frameworks that use OpenCV's channels and contiguous labels."""
    return to_coco_ids(to_rgb(model, metadata), metadata)


def spread_over_coco_ids(kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A class head for contiguous labels as a class head for raw ids, with the same probabilities.

    Args:
      kernel: [D, 81] and bias: [81], the 80 classes in the order of their ids, then "no object".

    Returns:
      kernel [D, 92] and bias [92]. Ids without a class get weights of 0 and a bias of `UNUSED_LOGIT`.
    """
    outputs = [*sorted(COCO_CLASSES), NUM_COCO_LABELS]
    wide_kernel = np.zeros((kernel.shape[0], NUM_COCO_LABELS + 1), kernel.dtype)
    wide_bias = np.full(NUM_COCO_LABELS + 1, UNUSED_LOGIT, bias.dtype)
    wide_kernel[:, outputs] = kernel
    wide_bias[outputs] = bias
    return wide_kernel, wide_bias


def sigmoid_to_rgb_and_coco_ids(model: ConvertedModel, metadata: Metadata) -> ConvertedModel:
    """As `to_rgb_and_coco_ids`, for class heads of sigmoids, one per decoder layer or one for all.

    The label embedding of a DINO gets zeros for ids without a class.
    """
    model = to_rgb(model, metadata)
    config = model.config
    if config.num_classes != len(COCO_CLASSES) or model.class_names:
        return model
    params = dict(model.params)
    heads = [path.removesuffix("/kernel") for path in params if re.fullmatch(r"class_head/\d+/kernel", path)]
    for head in heads:
        is_last = head == f"class_head/{len(heads) - 1}"
        proposes = isinstance(config, DeformableDETRConfig) and config.two_stage and is_last
        spread = spread_sigmoids_over_coco_ids(params[f"{head}/kernel"], params[f"{head}/bias"], proposes=proposes)
        params[f"{head}/kernel"], params[f"{head}/bias"] = spread
    if (labels := params.get("label_embedding")) is not None:
        params["label_embedding"] = np.zeros((NUM_COCO_LABELS, labels.shape[1]), labels.dtype)
        params["label_embedding"][sorted(COCO_CLASSES)] = labels
    note = (
        f"The class head's {len(COCO_CLASSES)} outputs (contiguous COCO classes) became {NUM_COCO_LABELS}: labels are "
        "now COCO's raw ids."
    )
    return ConvertedModel(
        config=dataclasses.replace(config, num_classes=NUM_COCO_LABELS),
        params=params,
        class_names=dict(COCO_CLASSES),
        notes=(*model.notes, note),
    )


def spread_sigmoids_over_coco_ids(
    kernel: np.ndarray, bias: np.ndarray, *, proposes: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A class head of sigmoids for contiguous labels as a class head for raw ids.

    Args:
      kernel: [D, 80] and bias: [80], the 80 classes in the order of their ids.
      proposes: the head chooses the proposals of a model with two stages. Its first output means "any object" and stays
        the first.

    Returns:
      kernel [D, 91] and bias [91]. Ids without a class get weights of 0 and a bias of `UNUSED_LOGIT`,
      so that they never take a place among the best detections.
    """
    outputs = sorted(COCO_CLASSES)
    if proposes:
        outputs[0] = 0
    wide_kernel = np.zeros((kernel.shape[0], NUM_COCO_LABELS), kernel.dtype)
    wide_bias = np.full(NUM_COCO_LABELS, UNUSED_LOGIT, bias.dtype)
    wide_kernel[:, outputs] = kernel
    wide_bias[outputs] = bias
    return wide_kernel, wide_bias
