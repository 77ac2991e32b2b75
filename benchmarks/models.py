"""The detectors that the benchmarks compare, by name."""

from collections.abc import Callable
from typing import NamedTuple

from detr_jax.config import DetectorConfig, LossConfig, focal_costs, focal_terms
from detr_jax.models import deformable_detr_resnet50, detr_resnet50, detr_resnet50_panoptic


class Compared(NamedTuple):
    """A detector, with a ResNet-50 and 91 classes, or 250 with masks."""

    config: Callable[..., DetectorConfig]
    """Its configuration; keywords override fields."""
    stride: int
    """The sides of buckets are multiples of this number of pixels."""
    trained_parameters: int | None
    """All but the stem, the first stage and the batch norms. None: its training is not compared."""
    loss: Callable[[], LossConfig]
    """The loss of transformers."""


def _focal_loss() -> LossConfig:
    """transformers never reads its weight of the focal loss, so that it is 1 in loss and cost."""
    terms, costs = focal_terms(), focal_costs()
    terms["ce"].weight = costs["class"].weight = 1.0
    return LossConfig(terms=terms, costs=costs)


MODELS = {
    "detr": Compared(detr_resnet50, 32, 41_302_368, LossConfig),
    "panoptic": Compared(detr_resnet50_panoptic, 32, None, LossConfig),
    "deformable": Compared(deformable_detr_resnet50, 64, 39_847_265, _focal_loss),
}
