"""The configuration of metrics: how detections in the validation images are evaluated."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from detr_jax.data import Source
    from detr_jax.evaluation.metrics import Evaluator

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

    @abstractmethod
    def build(self, source: "Source") -> "Evaluator":
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


def logged_name(entry: str, number: str) -> str:
    """The name under which a number of an entry of ``evaluation.metrics`` is logged: ``AP``, or ``ENTRY_NUMBER``."""
    return number if entry == UNPREFIXED else f"{entry}_{number}"
