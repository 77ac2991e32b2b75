"""The configuration of the matching cost and the set loss."""

from dataclasses import dataclass

from detr_jax.config.fields import Choice


class Matcher(Choice):
    """Where the matching is solved."""

    SCIPY = "scipy"
    DEVICE = "device"


@dataclass(kw_only=True)
class LossConfig:
    """Matching cost and set loss (DETR, section 3.1 and appendix A.2)."""

    matcher: Matcher = Matcher.SCIPY
    """Where the matching is solved: "scipy" (linear_sum_assignment on the host) or "device" (the same optimum on the
    accelerator)."""
    class_weight: float = 1.0
    """Weight of the classification loss (the paper's)."""
    bbox_weight: float = 5.0
    """Weight of the L1 loss of the boxes (the paper's)."""
    giou_weight: float = 2.0
    """Weight of the generalised IoU loss of the boxes (the paper's)."""
    cost_class: float = 1.0
    """Weight of the class probability in the matching cost (the paper's)."""
    cost_bbox: float = 5.0
    """Weight of the L1 distance of the boxes in the matching cost (the paper's)."""
    cost_giou: float = 2.0
    """Weight of the generalised IoU in the matching cost (the paper's)."""
    eos_coefficient: float = 0.1
    """Weight of "no object" in the classification loss: a tenth, because most queries find none (the paper's)."""
    auxiliary: bool = True
    """Train every decoder layer's predictions, not only the last's."""
