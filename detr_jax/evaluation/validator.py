"""A model over the validation images: the metrics, and a picture."""

from collections.abc import Iterator
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
from detr_jax.inference import create_predict_step
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

    def metrics(self, values: Values) -> dict[str, float]:
        """The COCO metrics of a model, by the names that `CocoEvaluator.metrics` gives them."""
        evaluator = CocoEvaluator(self.source.ground_truth())
        for batch, found in self._predictions(values):
            evaluator.add(batch.image_ids.tolist(), found.boxes, found.scores, found.labels)
        return evaluator.metrics()

    def draw(self, values: Values, path: Path) -> None:
        """Writes the first validation images with their ground truth and a model's predictions as one picture."""
        if not self.config.evaluation.pictures:
            return
        images: list[np.ndarray] = []
        truths: list[LabelledBoxes] = []
        predictions: list[LabelledBoxes] = []
        index_of = {image_id: index for index, image_id in enumerate(self.source.image_ids)}
        for batch, found in self._predictions(values):
            for i, image_id in enumerate(batch.image_ids.tolist()):
                if len(images) == self.config.evaluation.pictures or image_id < 0:
                    break
                image, objects = self.source[index_of[image_id]]
                sure = found.scores[i] >= self.config.evaluation.picture_threshold
                images.append(image)
                truths.append(LabelledBoxes(objects.boxes, objects.labels))
                predictions.append(LabelledBoxes(found.boxes[i][sure], found.labels[i][sure], found.scores[i][sure]))
            if len(images) == self.config.evaluation.pictures:
                break
        if images:
            comparison_sheet(path, images, truths, predictions, self.source.categories)

    def _predictions(self, values: Values) -> Iterator[tuple[Batch, Any]]:
        """Batches, and their `Detections` in numpy."""
        for batch in batches(self.plan, self.source, self.config.evaluation.batch_size, self.config.data):
            inputs = map(jnp.asarray, (batch.images, batch.sizes, batch.original_sizes))
            yield batch, jax.device_get(self._predict(values, *inputs))
