"""A model over the validation images: the metrics, snapshots, and a picture."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from detr_jax.config import Config
from detr_jax.data import Batch, Source, ValPlan, batches
from detr_jax.evaluation.coco import CocoEvaluator
from detr_jax.evaluation.stored import StoredDetections
from detr_jax.inference import check_scores, create_predict_step
from detr_jax.postprocess import Detections
from detr_jax.visualization import LabelledBoxes, comparison_sheet

Values = tuple[Any, ...]
"""Pure trees that make up a model's values."""


class Validator:
    """Runs models of one structure over the validation images of a data set."""

    def __init__(self, config: Config, source: Source, graph: nnx.GraphDef, mesh: Mesh):
        self.config = config
        self.source = source
        self.plan = ValPlan(source, config.data, config.evaluation.batch_size, config.model.backbone.stride)
        self._predict = create_predict_step(graph, mesh)
        self._first_batches: list[Batch] | None = None

    def detect(
        self, values: Values, step: int = 0, progress: Callable[[int], object] = lambda images: None
    ) -> StoredDetections:
        """What a model, that of ``step``, finds in every validation image; ``progress`` hears of images done.

        Raises:
          CheckpointError: the model's answers are not numbers.
        """
        found = []
        for batch in self._batches():
            found.append((batch, self._detections(values, batch)))
            progress(int((batch.image_ids >= 0).sum()))
        return self._stored(step, found)

    def judge(self, found: StoredDetections) -> dict[str, float]:
        """The COCO metrics of detections, by the names that `CocoEvaluator.metrics` gives them."""
        evaluator = CocoEvaluator(self.source.ground_truth())
        evaluator.add(found.image_ids.tolist(), found.boxes, found.scores, found.labels)
        return evaluator.metrics()

    def snapshot(self, values: Values, step: int) -> StoredDetections:
        """What a model, that of ``step``, finds in the first ``evaluation.pictures`` validation images of the plan.

        Those images are read once and kept.
        """
        if self._first_batches is None:
            self._first_batches, left = [], self.config.evaluation.pictures
            for batch in self._batches() if left else ():
                self._first_batches.append(batch)
                left -= int((batch.image_ids >= 0).sum())
                if left <= 0:
                    break
        found = self._stored(step, [(batch, self._detections(values, batch)) for batch in self._first_batches])
        first = slice(self.config.evaluation.pictures)
        return StoredDetections(step, *(array[first] for array in found[1:]))

    def draw(self, values: Values, path: Path) -> None:
        """Writes the first validation images with their ground truth and a model's predictions as one picture."""
        found = self.snapshot(values, 0)
        index_of = {image_id: index for index, image_id in enumerate(self.source.image_ids)}
        samples = [self.source[index_of[image_id]] for image_id in found.image_ids.tolist()]
        predictions = []
        for boxes, scores, labels in zip(*found[2:], strict=True):
            sure = scores >= self.config.evaluation.picture_threshold
            predictions.append(LabelledBoxes(boxes[sure], labels[sure], scores[sure]))
        if samples:
            images, truths = (
                [sample.image for sample in samples],
                [LabelledBoxes(*sample.objects) for sample in samples],
            )
            comparison_sheet(path, images, truths, predictions, self.source.categories)

    def _batches(self) -> Iterator[Batch]:
        return batches(self.plan, self.source, self.config.evaluation.batch_size, self.config.data)

    def _detections(self, values: Values, batch: Batch) -> Detections:
        """A model's `Detections` in numpy, places without an image included."""
        inputs = map(jnp.asarray, (batch.images, batch.sizes, batch.original_sizes))
        found = jax.device_get(self._predict(values, *inputs))
        check_scores(found.scores)
        return found

    def _stored(self, step: int, found: list[tuple[Batch, Detections]]) -> StoredDetections:
        """The detections of batches in one, without the places that hold no image."""
        queries = self.config.model.num_queries
        real = [batch.image_ids >= 0 for batch, _ in found]
        ids = [batch.image_ids[where] for (batch, _), where in zip(found, real, strict=True)]
        parts = [[array[where] for array in answer] for (_, answer), where in zip(found, real, strict=True)]
        nothing = [np.zeros((0, queries, 4), np.float32), np.zeros((0, queries), np.float32)]
        columns = zip([*nothing, np.zeros((0, queries), np.int32)], *parts, strict=True)
        return StoredDetections(
            step, np.concatenate([np.zeros(0, np.int64), *ids]), *(np.concatenate(column) for column in columns)
        )
