"""The metrics of a configuration: their evaluators, and the numbers that they compute."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from detr_jax.config import ConfigError, MetricConfig, logged_name
from detr_jax.data import Source
from detr_jax.structures import Detections

if TYPE_CHECKING:
    from detr_jax.inference.masks import ImageMasks

Metrics = dict[str, float | None]
"""Numbers by name. ``NAME/<category>`` is the number ``NAME`` of one category. None means undefined, for example if the
ground truth has no such object."""


class Evaluator(Protocol):
    """Collects detections and compares them with the ground truth. Dimensions: ``B`` images, ``N`` detections."""

    def add(self, image_ids: Iterable[int], detections: Detections) -> None:
        """Add the detections of some images.

        Args:
          image_ids: [B]. Images with a negative id are ignored.
          detections: boxes [B, N, 4] float32 xyxy in pixels of the original images, scores [B, N] float32, labels
            [B, N] int32. All are numpy arrays.
        """

    def compute(self) -> Metrics:
        """Compute the numbers of all detections that were added."""


class MaskEvaluator(Protocol):
    """Collects masks and compares them with the ground truth. Dimensions: ``B`` images, ``N`` detections."""

    def add_masks(
        self,
        image_ids: Iterable[int],
        detections: Detections,
        queries: np.ndarray,
        masks: "Sequence[ImageMasks]",
    ) -> None:
        """Add the masks of some images.

        Args:
          image_ids: [B]. Images with a negative id are ignored.
          detections: as for `Evaluator.add`.
          queries: [B, N] int32, the query of each detection.
          masks: of all detections of each image.
        """

    def compute(self) -> Metrics:
        """Compute the numbers of all masks that were added."""


class Evaluators:
    """The evaluators of entries of ``evaluation.metrics``. It is an `Evaluator` and a `MaskEvaluator` itself."""

    def __init__(self, metrics: Mapping[str, MetricConfig], source: Source):
        self.by_name: dict[str, Any] = {name: metric.build(source) for name, metric in metrics.items()}
        """The evaluator of each entry."""
        self._metrics = metrics

    def add(self, image_ids: Iterable[int], detections: Detections) -> None:
        """Add the detections of some images to every evaluator that compares boxes."""
        image_ids = list(image_ids)
        for name, evaluator in self.by_name.items():
            if not self._metrics[name].needs_masks:
                evaluator.add(image_ids, detections)

    def add_masks(
        self,
        image_ids: Iterable[int],
        detections: Detections,
        queries: np.ndarray,
        masks: "Sequence[ImageMasks]",
    ) -> None:
        """Add the masks of some images to every evaluator that compares masks."""
        image_ids = list(image_ids)
        for name, evaluator in self.by_name.items():
            if self._metrics[name].needs_masks:
                evaluator.add_masks(image_ids, detections, queries, masks)

    def compute(self) -> Metrics:
        """Compute the numbers of all entries, under the names in the log.

        Raises:
          ConfigError: an entry does not compute a number that its class lists.
        """
        found: Metrics = {}
        for entry, evaluator in self.by_name.items():
            numbers = evaluator.compute()
            if missing := [name for name in self._metrics[entry].numbers if name not in numbers]:
                raise ConfigError(
                    f"evaluation.metrics.{entry} computed {', '.join(numbers) or 'nothing'}, but "
                    f"{type(self._metrics[entry]).__name__}.numbers lists {missing[0]} too: drop it there, or let "
                    f"{type(evaluator).__name__}.compute() return it."
                )
            found |= {logged_name(entry, name): value for name, value in numbers.items()}
        return found
