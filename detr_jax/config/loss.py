"""The configuration of the matching cost and the set loss."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class LossConfig:
    """Matching cost and set loss (DETR, section 3.1 and appendix A.2)."""

    matcher: str = "scipy"
    """"scipy" (linear_sum_assignment on the host) or "device" (the same optimum on the accelerator)."""
    class_weight: float = 1.0
    bbox_weight: float = 5.0
    giou_weight: float = 2.0
    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    eos_coefficient: float = 0.1
    """Weight of "no object" in the classification loss."""
    auxiliary: bool = True
    """Train every decoder layer's predictions, not only the last's."""
