"""The evaluators of masks: COCO's metrics by faster-coco-eval, and panoptic quality."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from detr_jax.config import ConfigError
from detr_jax.data import Source
from detr_jax.data.masks import encoded
from detr_jax.evaluation.coco import CocoEvaluator
from detr_jax.evaluation.metrics import Metrics
from detr_jax.evaluation.panoptic_quality import PanopticStatistics
from detr_jax.inference.masks import ImageMasks, panoptic_candidates
from detr_jax.structures import Detections


class CocoMaskEvaluator(CocoEvaluator):
    """Collects masks and compares them with annotations like COCO's own evaluation.

    It is a `detr_jax.evaluation.metrics.MaskEvaluator`. The overlap of two objects is that of their masks.
    """

    def __init__(self, ground_truth: dict[str, Any]):
        """Prepare the evaluation.

        Args:
          ground_truth: an instances JSON whose annotations have a ``segmentation``, which is run lengths.

        Raises:
          ConfigError: an annotation has none.
        """
        super().__init__(ground_truth)
        if bare := [one["id"] for one in ground_truth["annotations"] if "segmentation" not in one]:
            raise ConfigError(
                f"A metric of masks needs masks in the ground truth, and annotation {bare[0]} has no segmentation: let "
                "ground_truth() of the data set return run lengths, or drop the metric from evaluation.metrics."
            )
        self._found: list[dict[str, Any]] = []

    def add_masks(
        self, image_ids: Iterable[int], detections: Detections, queries: np.ndarray, masks: Sequence[ImageMasks]
    ) -> None:
        """Add the masks of some images.

        Args:
          image_ids: [B]. Images with a negative id are ignored.
          detections: scores [B, N], and labels [B, N], which are category ids of the ground truth.
          queries: not used.
          masks: of all detections of each image.
        """
        for image_id, scores, labels, of_image in zip(
            image_ids, detections.scores, detections.labels, masks, strict=True
        ):
            if image_id >= 0:
                columns = zip(scores.tolist(), labels.tolist(), of_image.bitmaps(), strict=True)
                self._found += [
                    {"image_id": int(image_id), "category_id": label, "score": score, "segmentation": encoded(bitmap)}
                    for score, label, bitmap in columns
                ]

    def _evaluated(self) -> COCOeval_faster:
        truth = COCO({key: list(self._ground_truth[key]) for key in ("images", "annotations", "categories")})
        evaluation = COCOeval_faster(truth, truth.loadRes(self._found), "segm", print_function=lambda *_: None)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation


class PanopticEvaluator:
    """Makes segments of masks and compares them with a panoptic ground truth.

    It is a `detr_jax.evaluation.metrics.MaskEvaluator`.
    """

    def __init__(self, source: Source, threshold: float):
        """Prepare the evaluation.

        Args:
          source: a data set with panoptic annotations.
          threshold: scores above it become segments.

        Raises:
          ConfigError: the data set has no panoptic annotations.
        """
        if not hasattr(source, "panoptic"):
            raise ConfigError(
                f"A metric of panoptic quality needs panoptic annotations, and {source.faults.where} has none: use "
                "data.dataset=coco_panoptic, or drop the metric from evaluation.metrics."
            )
        self._source: Any = source
        self._threshold = threshold
        self._index_of = {image_id: index for index, image_id in enumerate(source.image_ids)}
        self._statistics = PanopticStatistics()

    def add_masks(
        self, image_ids: Iterable[int], detections: Detections, queries: np.ndarray, masks: Sequence[ImageMasks]
    ) -> None:
        """Add the masks of some images.

        Args:
          image_ids: [B]. Images with a negative id are ignored.
          detections: scores [B, N] and labels [B, N] of the data set.
          queries: [B, N], the query of each detection.
          masks: of all detections of each image.
        """
        for image_id, scores, labels, query, of_image in zip(
            image_ids, detections.scores, detections.labels, queries, masks, strict=True
        ):
            if image_id < 0:
                continue
            chosen = panoptic_candidates(scores, query, self._threshold)
            found = of_image.select(chosen).segments(labels[chosen], self._source.stuff_labels)
            truth = self._source.panoptic(self._index_of[image_id])
            self._statistics.add(truth, found.ids, labels[chosen][found.candidates])

    def compute(self) -> Metrics:
        """Panoptic, segmentation and recognition quality in 0..1, of all classes, of things and of stuff.

        ``PQ/<category>`` is that of one class. A value is None if no such class occurs.
        """
        stuff = self._source.stuff_labels
        groups = {
            "": list(self._source.categories),
            "_things": [label for label in self._source.categories if label not in stuff],
            "_stuff": [label for label in self._source.categories if label in stuff],
        }
        metrics: Metrics = {}
        for suffix, labels in groups.items():
            means = self._statistics.mean(labels) or (None, None, None)
            metrics |= {f"{name}{suffix}": value for name, value in zip(("PQ", "SQ", "RQ"), means, strict=True)}
        for label, name in self._source.categories.items():
            qualities = self._statistics.of_class(label)
            metrics[f"PQ/{name}"] = None if qualities is None else qualities[0]
        return metrics
