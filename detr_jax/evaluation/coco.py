"""COCO's metrics of boxes, computed by faster-coco-eval."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from detr_jax.boxes import xyxy_to_xywh
from detr_jax.config import CocoBox
from detr_jax.evaluation.metrics import Metrics as Metrics
from detr_jax.structures import Detections

METRICS = CocoBox.numbers
"""Names of COCO's 12 metrics."""


def has_objects(ground_truth: dict[str, Any]) -> bool:
    """Whether an instances JSON has an object that is not a crowd. Without one, no metric is defined."""
    return any(not annotation.get("iscrowd") for annotation in ground_truth["annotations"])


class CocoEvaluator:
    """Collects detections and compares them with annotations like COCO's own evaluation.

    It is a `detr_jax.evaluation.metrics.Evaluator`.
    """

    def __init__(self, ground_truth: dict[str, Any]):
        """``ground_truth`` is an instances JSON: images, annotations (crowds included) and categories."""
        self._ground_truth = ground_truth
        self._rows: list[np.ndarray] = []

    def add(self, image_ids: Iterable[int], detections: Detections) -> None:
        """Add the detections of some images.

        Args:
          image_ids: [B]. Images with a negative id are ignored.
          detections: boxes [B, N, 4] xyxy in pixels of the original images, scores [B, N], and labels [B, N], which are
            category ids of the ground truth.
        """
        rows = xyxy_to_xywh(detections.boxes), detections.scores, detections.labels
        for image_id, xywh, score, label in zip(image_ids, *rows, strict=True):
            if image_id >= 0:
                columns = np.full(len(score), image_id), xywh, score, label
                self._rows.append(np.column_stack([np.asarray(x, np.float64) for x in columns]))

    def compute(self) -> Metrics:
        """Compute COCO's metrics of all detections that were added.

        Returns:
          Values in 0..1: the names in `METRICS`, and ``AP/<category>`` for each category. A value is None if the ground
          truth has no object of its size or category, or no object at all. COCO's own evaluation writes -1 instead,
          which cannot be compared with other values.
        """
        evaluation = self._evaluated()
        evaluation.summarize()
        stats = (float(value) for value in evaluation.stats[: len(METRICS)])
        metrics: Metrics = {name: value if value >= 0 else None for name, value in zip(METRICS, stats, strict=True)}

        precision = evaluation.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category], all areas, 100 boxes
        for index, category_id in enumerate(evaluation.params.catIds):
            known = precision[:, :, index][precision[:, :, index] > -1]
            name = evaluation.cocoGt.cats[category_id]["name"]
            metrics[f"AP/{name}"] = float(known.mean()) if known.size else None
        return metrics

    def precision(self) -> tuple[np.ndarray, list[str]]:
        """Precision [10, 101, K] at IoU 0.5, 0.55 ... 0.95 and recall 0, 0.01 ... 1, and the names of the K categories.

        Precision is -1 for a category without objects, and 0 at a recall that is not reached.
        """
        evaluation = self._evaluated()
        names = [evaluation.cocoGt.cats[category_id]["name"] for category_id in evaluation.params.catIds]
        return evaluation.eval["precision"][:, :, :, 0, -1], names

    def _evaluated(self) -> COCOeval_faster:
        truth = COCO({key: list(self._ground_truth[key]) for key in ("images", "annotations", "categories")})
        found = np.concatenate(self._rows) if self._rows else np.zeros((0, 7))
        evaluation = COCOeval_faster(truth, truth.loadRes(found), "bbox", print_function=lambda *_: None)
        evaluation.evaluate()
        evaluation.accumulate()
        return evaluation
