"""Run a model on the validation images: detections, metrics, snapshots, and a picture."""

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from detr_jax.config import Config
from detr_jax.data import Source, ValPlan, batches
from detr_jax.data.batching import PlannedBatch
from detr_jax.distributed import is_main
from detr_jax.evaluation.detections_file import StoredDetections
from detr_jax.evaluation.metrics import Evaluators, Metrics
from detr_jax.evaluation.sameness import sameness
from detr_jax.inference.masks import ImageMasks, MaskSteps
from detr_jax.inference.predict import check_scores, create_predict_step
from detr_jax.memory import fitting, on_host
from detr_jax.sharding import own_rows, shard_rows
from detr_jax.structures import Batch, Detections
from detr_jax.visualization import LabelledBoxes, comparison_sheet
from detr_jax.wording import image_name

Values = tuple[Any, ...]
"""Pure trees that make up a model's values."""


class Validator:
    """Runs models of one structure on the validation images of a data set.

    If the mesh has devices of several processes, each process reads its own rows of a batch and gets all detections.
    All processes must call the same methods.
    """

    def __init__(self, config: Config, source: Source, graph: nnx.GraphDef, mesh: Mesh, where: Any = None):
        """``where`` is the sharding of the model's values, by default whole on every device."""
        self.config = config
        self.source = source
        self.plan = ValPlan(source, config.data, config.evaluation.batch_size, config.model.stride)
        self._mesh = mesh
        self._predict = create_predict_step(graph, mesh, where)
        metrics = config.evaluation.metrics
        self._box_metrics = {name: metric for name, metric in metrics.items() if not metric.needs_masks}
        self._mask_metrics = {name: metric for name, metric in metrics.items() if metric.needs_masks}
        self._mask_steps = MaskSteps(graph, mesh, where)
        self._first_batches: list[tuple[PlannedBatch, Batch]] | None = None

    def validate(
        self, values: Values, step: int = 0, after_batch: Callable[[int], object] = lambda images: None
    ) -> tuple[StoredDetections, Metrics]:
        """Predict every validation image and compute the metrics in ``evaluation.metrics``.

        Masks are compared batch by batch, and not kept. The arguments are those of `detect`.

        Raises:
          CheckpointError: the scores are not numbers.
          ConfigError: a metric does not compute what its class lists.
          OutOfMemoryError: a batch does not fit into memory.
        """
        if not self._mask_metrics:
            found = self.detect(values, step, after_batch)
            return found, self.evaluate(found)
        evaluators = Evaluators(self._mask_metrics, self.source)
        batches = []
        with self._fitting():
            for planned, batch in self._batches():
                batches.append((planned, self._compare_masks(values, planned, batch, evaluators)))
                after_batch(len(planned.images))
            found = self._stored(step, batches)
        of_boxes, of_masks = self.evaluate(found), evaluators.compute()
        return found, of_boxes | of_masks

    def _compare_masks(self, values: Values, planned: PlannedBatch, batch: Batch, evaluators: Evaluators) -> Detections:
        """The `Detections` of a batch, whose masks are added to the evaluators."""
        inputs = shard_rows((batch.inputs.images, batch.inputs.valid_sizes, batch.info.original_sizes), self._mesh)
        steps, stride = self._mask_steps, self.config.model.mask_stride
        assert stride is not None
        on_device, queries, features = steps.detect(values, *inputs)
        found, query = on_host((on_device, queries))
        check_scores(found.scores[: len(planned.images)])
        logits = on_host(steps.logits(values, features, query))
        ids = [int(self.source.image_ids[image.source_index]) for image in planned.images]
        sizes = [image.geometry.size for image in planned.images]
        originals = [self.source.sizes[image.source_index] for image in planned.images]
        each = zip(logits, sizes, originals, strict=False)
        masks = [ImageMasks.of(of_image, size, original, stride) for of_image, size, original in each]
        there = jax.tree.map(operator.itemgetter(slice(len(ids))), found)
        evaluators.add_masks(ids, there, query[: len(ids)], masks)
        return found

    def detect(
        self, values: Values, step: int = 0, after_batch: Callable[[int], object] = lambda images: None
    ) -> StoredDetections:
        """Predict every validation image.

        Args:
          values: the model's values.
          step: optimizer steps that the model was trained for.
          after_batch: called after each batch with its number of images. It may stop the prediction by raising.

        Raises:
          OutOfMemoryError: a batch does not fit into memory.
        """
        found = []
        with self._fitting():
            for planned, batch in self._batches():
                found.append((planned, self._detections(values, batch)))
                after_batch(len(planned.images))
            return self._stored(step, found)

    def evaluate(self, found: StoredDetections) -> Metrics:
        """Compute the metrics in ``evaluation.metrics`` of detections, except for those of masks.

        Raises:
          CheckpointError: the scores are not numbers.
          ConfigError: a metric does not compute what its class lists.
        """
        check_scores(found.scores)
        evaluators = Evaluators(self._box_metrics, self.source)
        evaluators.add(found.image_ids.tolist(), found.detections)
        return evaluators.compute()

    def sameness(self, found: StoredDetections) -> str | None:
        """The warning of `detr_jax.evaluation.sameness.sameness` about detections, if there is one."""
        index_of = {image_id: index for index, image_id in enumerate(self.source.image_ids)}
        sizes = self.source.sizes[[index_of[image_id] for image_id in found.image_ids.tolist()]]
        return sameness(found, sizes, self.source.categories)

    def snapshot(self, values: Values, step: int) -> StoredDetections:
        """Predict the first ``evaluation.pictures`` validation images of the plan.

        The images are read once and kept in memory.
        """
        with self._fitting():
            if self._first_batches is None:
                self._first_batches, left = [], self.config.evaluation.pictures
                for planned, batch in self._batches() if left else ():
                    self._first_batches.append((planned, batch))
                    left -= len(planned.images)
                    if left <= 0:
                        break
            found = self._stored(
                step, [(planned, self._detections(values, batch)) for planned, batch in self._first_batches]
            )
        return found.first(self.config.evaluation.pictures)

    def draw(self, values: Values, path: Path) -> None:
        """Write a picture of the first validation images with their ground truth and a model's predictions."""
        found = self.snapshot(values, 0)
        if not is_main():
            return
        index_of = {image_id: index for index, image_id in enumerate(self.source.image_ids)}
        indices = [index_of[image_id] for image_id in found.image_ids.tolist()]
        samples = [self.source[index] for index in indices]
        predictions = []
        for boxes, scores, labels in zip(found.boxes, found.scores, found.labels, strict=True):
            drawn = scores >= self.config.evaluation.picture_threshold
            predictions.append(LabelledBoxes(boxes[drawn], labels[drawn], scores[drawn]))
        if samples:
            images = [sample.image for sample in samples]
            truths = [LabelledBoxes(sample.objects.boxes, sample.objects.labels) for sample in samples]
            names = [image_name(self.source, index) for index in indices]
            comparison_sheet(path, images, truths, predictions, self.source.categories, names)

    def _fitting(self) -> AbstractContextManager[None]:
        """Report that the validation batches do not fit if memory runs out inside, and what helps."""
        height, width = max(self.plan.buckets, key=math.prod)
        size = self.config.evaluation.batch_size
        return fitting(
            f"The validation of {size} image(s) together, on buckets of up to {height} x {width} pixels,",
            f"Lower evaluation.batch_size={size}, or use smaller buckets (data.val_short_side, data.val_buckets).",
        )

    def _batches(self) -> Iterator[tuple[PlannedBatch, Batch]]:
        """Each planned batch, and the rows of this process in it."""
        size = self.config.evaluation.batch_size
        rows = own_rows(self._mesh, size)
        return zip(self.plan.batches, batches(self.plan, self.source, size, self.config.data, rows=rows), strict=True)

    def _detections(self, values: Values, batch: Batch) -> Detections:
        """A model's `Detections` in the whole batch in numpy, places without an image included."""
        inputs = shard_rows((batch.inputs.images, batch.inputs.valid_sizes, batch.info.original_sizes), self._mesh)
        return on_host(self._predict(values, *inputs))

    def _stored(self, step: int, found: list[tuple[PlannedBatch, Detections]]) -> StoredDetections:
        """The detections of all batches together, without the rows that hold no image."""
        queries = self.config.model.max_detections
        ids = [[self.source.image_ids[image.source_index] for image in planned.images] for planned, _ in found]
        nothing = Detections(
            np.zeros((0, queries, 4), np.float32), np.zeros((0, queries), np.float32), np.zeros((0, queries), np.int32)
        )
        parts = [jax.tree.map(operator.itemgetter(slice(len(planned.images))), answer) for planned, answer in found]
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), nothing, *parts)
        return StoredDetections(
            step,
            np.array([id for batch in ids for id in batch], np.int64),
            joined.boxes,
            joined.scores,
            joined.labels,
        )
