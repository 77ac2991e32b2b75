"""The configuration of metrics: how detections in the validation images are evaluated."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from detr_jax.config.fields import ranged

if TYPE_CHECKING:
    from detr_jax.data import Source
    from detr_jax.evaluation.metrics import Evaluator, MaskEvaluator

UNPREFIXED = "bbox"
"""The entry of ``evaluation.metrics`` whose numbers are logged under their own names."""


@dataclass(kw_only=True)
class MetricConfig:
    """The base class of metrics.

    A metric of your own is a subclass with ``numbers`` and ``build``, and an entry of ``evaluation.metrics``::

        @dataclass(kw_only=True)
        class CountError(MetricConfig):
            numbers = ("accuracy",)
            threshold: float = 0.5

            def build(self, source):
                return CountEvaluator(source, self.threshold)

        config.evaluation.metrics["count"] = CountError()
        config.evaluation.best = "count_accuracy"
    """

    numbers: ClassVar[tuple[str, ...]] = ()
    """Names of the numbers that the metric computes for the data set as a whole. `evaluation.best` can be one of them
    if larger is better."""

    needs_masks: ClassVar[bool] = False
    """Whether the metric compares masks. Its evaluator is then a `detr_jax.evaluation.metrics.MaskEvaluator`."""

    @abstractmethod
    def build(self, source: "Source") -> "Evaluator | MaskEvaluator":
        """Return a new evaluator for the validation images of a data set."""
        raise NotImplementedError(f"{type(self).__name__} must define build(self, source).")


@dataclass(kw_only=True)
class CocoBox(MetricConfig):
    """COCO's 12 metrics of boxes, and the AP of each class."""

    numbers: ClassVar[tuple[str, ...]] = (
        *("AP", "AP50", "AP75", "APs", "APm", "APl"),
        *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
    )

    def build(self, source: "Source") -> "Evaluator":
        """Return a `detr_jax.evaluation.coco.CocoEvaluator`."""
        from detr_jax.evaluation.coco import CocoEvaluator

        return CocoEvaluator(source.ground_truth())


@dataclass(kw_only=True)
class CocoMask(MetricConfig):
    """COCO's 12 metrics of masks, and the AP of each class."""

    numbers: ClassVar[tuple[str, ...]] = CocoBox.numbers
    needs_masks = True

    def build(self, source: "Source") -> "MaskEvaluator":
        """Return a `detr_jax.evaluation.mask_evaluators.CocoMaskEvaluator`."""
        from detr_jax.evaluation.mask_evaluators import CocoMaskEvaluator

        return CocoMaskEvaluator(source.ground_truth())


@dataclass(kw_only=True)
class PanopticQuality(MetricConfig):
    """Panoptic quality, its two factors, and the panoptic quality of each class (Kirillov et al., 2019)."""

    numbers: ClassVar[tuple[str, ...]] = (
        *("PQ", "SQ", "RQ"),
        *("PQ_things", "SQ_things", "RQ_things"),
        *("PQ_stuff", "SQ_stuff", "RQ_stuff"),
    )
    needs_masks = True

    threshold: float = ranged(0.85, least=0.5, most=1)
    """Scores above it become segments (the original's). It is at least 0.5, above which a query finds an object more
    likely than none."""

    def build(self, source: "Source") -> "MaskEvaluator":
        """Return a `detr_jax.evaluation.mask_evaluators.PanopticEvaluator`."""
        from detr_jax.evaluation.mask_evaluators import PanopticEvaluator

        return PanopticEvaluator(source, self.threshold)


def logged_name(entry: str, number: str) -> str:
    """The name under which a number of an entry of ``evaluation.metrics`` is logged: ``AP``, or ``ENTRY_NUMBER``."""
    return number if entry == UNPREFIXED else f"{entry}_{number}"
