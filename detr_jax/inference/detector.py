"""`Detector`: a trained detector that takes images of any size."""

import dataclasses
import functools
import os
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import jax
import numpy as np
from flax import nnx
from PIL import Image

from detr_jax.checkpoints import load_labels, load_model
from detr_jax.compilation_cache import keep_compiled_programs
from detr_jax.config import Config, DataConfig, check_prediction
from detr_jax.data.batching import usable_cores
from detr_jax.data.images import ImageLike
from detr_jax.data.labels import mapped
from detr_jax.data.masks import as_text, encoded
from detr_jax.data.placement import place, prediction_buckets
from detr_jax.data.source import DataError
from detr_jax.host_memory import keep_freed_memory
from detr_jax.image_segments import ImagePanoptic, Segment
from detr_jax.inference.attention import AttentionStep, create_attention_step
from detr_jax.inference.batching import (
    Answer,
    WaitingImage,
    batches_by_bucket,
    bucket_fitting,
    open_waiting,
    read_batch,
)
from detr_jax.inference.masks import ImageMasks, MaskSteps, check_masks, padded_number, panoptic_candidates
from detr_jax.inference.notes import notes
from detr_jax.inference.predict import check_scores, create_predict_step
from detr_jax.memory import OutOfMemoryError, on_host
from detr_jax.models.detector import DetectorModule
from detr_jax.panoptic import THRESHOLD
from detr_jax.results import ImageAttention, ImageDetections, ImageSampling
from detr_jax.sharding import mesh_for_batch, replicated
from detr_jax.structures import Detections
from detr_jax.wording import counted, one_line


class _Wanted(NamedTuple):
    """What to predict for each image."""

    threshold: float
    masks: bool
    panoptic: bool
    panoptic_threshold: float
    mask_threshold: float

    @property
    def needs_masks(self) -> bool:
        return self.masks or self.panoptic

    def chosen(self, scores: np.ndarray) -> np.ndarray:
        """The indices of the detections whose masks are needed, of scores [N]."""
        least = np.zeros(len(scores), bool)
        least |= self.masks & (scores >= self.threshold)
        least |= self.panoptic & (scores > self.panoptic_threshold)
        return np.flatnonzero(least)


class _Started(NamedTuple):
    """A batch that the devices work on."""

    waiting: list[WaitingImage]
    pictures: list[Image.Image | DataError | OutOfMemoryError]
    detections: Detections
    queries: Any = None
    """The query of each detection, if masks are needed."""
    features: Any = None
    """What masks are computed from, if masks are needed."""


class Detector:
    """A trained detector that takes images of any size.

    Images are resized as in validation, placed into the smallest of a few buckets that holds them, and predicted in
    batches. Each bucket is compiled when it is first needed, or by `warmup`. Compiled steps are kept on disk for later
    processes (`detr_jax.compilation_cache`).

    Attributes:
      model: the detector, such as a `detr_jax.models.DETR`.
      config: the configuration of its training.
      params: nested dict of the parameters on the devices. Assign a new one to swap weights.
      class_names: name by label; empty if the checkpoint holds none.
      category_ids: category id by label. Results have these ids as their labels. It is empty if the labels are the
        ids.
      stuff_labels: labels of the classes that are no things, such as sky.
      buckets: (height, width) in pixels, sorted by area.
      batch_size: number of images that are predicted together.
    """

    def __init__(
        self,
        model: DetectorModule,
        config: Config,
        class_names: dict[int, str] | None = None,
        *,
        category_ids: dict[int, int] | None = None,
        stuff_labels: Collection[int] = (),
        batch_size: int = 1,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1.")
        keep_compiled_programs()
        mesh = mesh_for_batch(batch_size)
        graph, params = nnx.split(model)
        self.model = model
        self.config = config
        self.params = jax.device_put(nnx.as_pure(params), replicated(mesh))
        self.class_names = dict(class_names or {})
        self.category_ids = dict(category_ids or {})
        self.stuff_labels = frozenset(stuff_labels)
        self.buckets = prediction_buckets(config)
        self.batch_size = batch_size
        self._predict = create_predict_step(graph, mesh)
        self._mask_steps = MaskSteps(graph, mesh)

    def __repr__(self) -> str:
        kind = f"{type(self.model).__name__}, {counted(self.config.model.max_detections, 'detection')}"
        buckets, largest = counted(len(self.buckets), "bucket", "buckets"), "{} x {}".format(*self.buckets[-1])
        ending = f"; {kind}; {buckets} up to {largest}; batch_size={self.batch_size})"
        names = [" ".join(name.split()) for _, name in sorted(self.class_names.items())]
        classes = counted(len(names) or self.config.model.num_classes, "class", "classes")
        return one_line(f"Detector({classes}{': ' if names else ''}", names, ending, 100)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        ema: bool = True,
        *,
        batch_size: int = 1,
        data: DataConfig | None = None,
    ) -> Self:
        """Loads a detector from a checkpoint. On CPUs this also calls `keep_freed_memory`.

        Args:
          path: a checkpoint, or the workdir of a run, whose newest checkpoint is used.
          ema: use the EMA of the parameters if the checkpoint has it.
          batch_size: number of images that are predicted together. 1 has the lowest latency for a single image. A
            larger batch keeps an accelerator busy. An incomplete batch costs as much as a full one. If there are
            several devices, the largest number of them that divides the batch evenly is used.
          data: how to prepare images, for example another ``val_short_side``. By default, as in training.

        Raises:
          CheckpointError: there is no checkpoint.
          ConfigError: ``data`` does not fit the model.
          OutOfMemoryError: the model does not fit into memory.
        """
        keep_freed_memory()
        model, config = load_model(Path(path), ema=ema)
        if data is not None:
            config = dataclasses.replace(config, data=data)
            check_prediction(config)
        names, ids, stuff = load_labels(Path(path))
        return cls(model, config, dict(names), category_ids=dict(ids), stuff_labels=stuff, batch_size=batch_size)

    @overload
    def predict(
        self,
        images: ImageLike,
        threshold: float = 0.5,
        *,
        masks: bool = False,
        panoptic: bool = False,
        panoptic_threshold: float = THRESHOLD,
        mask_threshold: float = 0.0,
    ) -> ImageDetections: ...

    @overload
    def predict(
        self,
        images: list[ImageLike] | tuple[ImageLike, ...],
        threshold: float = 0.5,
        *,
        masks: bool = False,
        panoptic: bool = False,
        panoptic_threshold: float = THRESHOLD,
        mask_threshold: float = 0.0,
    ) -> list[ImageDetections]: ...

    def predict(
        self,
        images: ImageLike | list[ImageLike] | tuple[ImageLike, ...],
        threshold: float = 0.5,
        *,
        masks: bool = False,
        panoptic: bool = False,
        panoptic_threshold: float = THRESHOLD,
        mask_threshold: float = 0.0,
    ) -> ImageDetections | list[ImageDetections]:
        """Detects objects in one or several images.

        Args:
          images: one image, or a list or tuple of them (`ImageLike`), of any sizes. The EXIF orientation of a file is
            applied, as image viewers do, unless the configuration has ``data.exif="ignore"``. PIL images and arrays
            are used as they are.
          threshold: the lowest score of a detection; 0 returns all queries.
          masks: also compute the mask of each detection, in the original size.
          panoptic: also compute the panoptic segments of each image.
          panoptic_threshold: scores above it become panoptic segments, whatever ``threshold`` is.
          mask_threshold: pixels at which no mask is as probable as this belong to no panoptic segment. 0, the default:
            every pixel belongs to a segment if there is one, as in the original.

        Returns:
          The `ImageDetections` of the image, or a list of them in the order of the images. Boxes are in pixels of the
          original image.

        Raises:
          ValueError: a threshold is out of range, or the model predicts no masks.
          DataError: an image cannot be read. `stream` continues with the other images instead.
          OutOfMemoryError: an image or its bucket does not fit into memory. `stream` continues in this case too.
          CheckpointError: the scores of the model are not finite numbers.
        """
        several = images if isinstance(images, list | tuple) else [images]
        results: dict[int, ImageDetections] = {}
        for answer in self.stream(
            several,
            threshold,
            masks=masks,
            panoptic=panoptic,
            panoptic_threshold=panoptic_threshold,
            mask_threshold=mask_threshold,
        ):
            if not isinstance(answer.result, ImageDetections):
                raise answer.result
            results[answer.index] = answer.result
        ordered = [results[index] for index in range(len(results))]
        return ordered if several is images else ordered[0]

    def stream(
        self,
        images: Iterable[ImageLike],
        threshold: float = 0.5,
        *,
        masks: bool = False,
        panoptic: bool = False,
        panoptic_threshold: float = THRESHOLD,
        mask_threshold: float = 0.0,
    ) -> Iterator[Answer]:
        """Detects objects in any number of images and keeps only a few of them in memory.

        Images are grouped by bucket and predicted as soon as ``batch_size`` share one. GPUs and TPUs compute a batch
        while the next one is read. Before that, only the headers of files are read. PIL images and arrays wait as
        copies, at most ``batch_size - 1`` per bucket. The arguments are those of `predict`.

        Yields:
          An `Answer` for each image, in the order in which the batches are finished. Its ``index`` identifies the
          image.
        """
        _check_threshold(threshold)
        wanted = _Wanted(threshold, masks, panoptic, panoptic_threshold, mask_threshold)
        if wanted.needs_masks:
            check_masks(self.config.model)
        if not 0.5 <= panoptic_threshold <= 1:
            raise ValueError(f"panoptic_threshold={panoptic_threshold} must be between 0.5 and 1.")
        if not 0 <= mask_threshold < 1:
            raise ValueError(f"mask_threshold={mask_threshold} must be at least 0 and below 1.")
        started: _Started | None = None
        in_background = jax.default_backend() != "cpu"  # on CPUs, `_start` may return after the computation
        with ThreadPoolExecutor(min(self.batch_size, usable_cores()), "images") as threads:
            for batch in batches_by_bucket(images, self.config, self.buckets, self.batch_size):
                if isinstance(batch, Answer):
                    yield batch
                    continue
                if started and not in_background:
                    yield from self._finish(started, wanted)
                    started = None
                try:
                    following = self._start(batch, threads, wanted)
                except OutOfMemoryError as error:
                    yield from _all_too_large(batch, error)
                    continue
                if started:
                    yield from self._finish(started, wanted)
                started = following
            if started:
                yield from self._finish(started, wanted)

    def attention(self, image: ImageLike, threshold: float = 0.5) -> ImageAttention | ImageSampling:
        """Detects objects in one image, as `predict` does, and returns what the queries of the detections look at.

        These are attention weights in a DETR, and sampled points in a Deformable DETR.

        It needs another compiled step than `predict`, which is compiled once per bucket.

        Raises:
          AttentionError: the detector has no attention maps.
          DataError, OutOfMemoryError, CheckpointError: as `predict` does.
        """
        _check_threshold(threshold)
        attend = self._attend
        waiting = open_waiting(image, 0, "The image", self.config, self.buckets)
        placement = waiting.placement
        with bucket_fitting(placement.bucket, 1, self.config.data, "The attention on the bucket"):
            images = np.zeros((1, *placement.bucket, 3), np.uint8)
            picture = waiting.read(images[0], self.config.data)
            valid_sizes = np.array([placement.size], np.int32)
            original_sizes = np.array([waiting.original_size], np.int32)
            found, decoder, encoder = on_host(attend(self.params, images, valid_sizes, original_sizes))
        check_scores(found.scores)
        chosen = _highest_scoring(found.scores, threshold)
        result = self._result(waiting, jax.tree.map(lambda x: x[chosen], found))
        if isinstance(decoder, tuple):
            places, weights = (x[chosen] for x in decoder)
            places = places * np.array(waiting.original_size[::-1], np.float32)
            return ImageSampling(np.asarray(picture), result, places, weights)
        stride = self.config.model.stride
        height, width = placement.size
        rows, columns = -(-height // stride), -(-width // stride)
        return ImageAttention(
            image=np.asarray(picture),
            found=result,
            decoder=decoder[chosen, :rows, :columns],
            encoder=None if encoder is None else encoder[:rows, :columns, :rows, :columns],
            cells=(height / stride, width / stride),
        )

    @functools.cached_property
    def _attend(self) -> AttentionStep:
        return create_attention_step(self.model)

    def warmup(self, sizes: Iterable[tuple[int, int]] | None = None, *, masks: bool = False) -> None:
        """Compiles the prediction for images of these sizes, or reads it from disk.

        Args:
          sizes: (height, width) of images in pixels; by default, all buckets are compiled.
          masks: compile the prediction with masks, for up to ``model.masks.block_size`` masks of an image. More masks
            are compiled when they are first needed.

        Raises:
          OutOfMemoryError: a bucket does not fit into memory.
        """
        buckets = self.buckets if sizes is None else {place(size, self.config, self.buckets).bucket for size in sizes}
        for bucket in buckets:
            valid = np.full((self.batch_size, 2), bucket, np.int32)
            with bucket_fitting(bucket, self.batch_size, self.config.data):
                images = np.zeros((self.batch_size, *bucket, 3), np.uint8)
                if not masks:
                    jax.block_until_ready(self._predict((self.params,), images, valid, valid))
                    continue
                _, queries, features = self._mask_steps.detect((self.params,), images, valid, valid)
                number = padded_number(1, self.config.model.mask_block, queries.shape[1])
                needed = np.zeros((self.batch_size, number), np.int32)
                jax.block_until_ready(self._mask_steps.logits((self.params,), features, needed))

    def _start(self, waiting: list[WaitingImage], threads: ThreadPoolExecutor, wanted: _Wanted) -> _Started:
        """Reads a batch and starts its prediction."""
        batch = read_batch(waiting, self.batch_size, self.config.data, threads)
        inputs = batch.images, batch.valid_sizes, batch.original_sizes
        with bucket_fitting(waiting[0].placement.bucket, self.batch_size, self.config.data):
            if wanted.needs_masks:
                return _Started(waiting, batch.pictures, *self._mask_steps.detect((self.params,), *inputs))
            return _Started(waiting, batch.pictures, self._predict((self.params,), *inputs))

    def _finish(self, started: _Started, wanted: _Wanted) -> Iterator[Answer]:
        """Waits for the prediction of a batch and yields its answers."""
        try:
            with bucket_fitting(started.waiting[0].placement.bucket, self.batch_size, self.config.data):
                found = on_host(started.detections)
                check_scores(found.scores)
                masks = self._masks(started, found, wanted) if wanted.needs_masks else {}
        except OutOfMemoryError as error:
            yield from _all_too_large(started.waiting, error)
            return
        for i, (waiting, picture) in enumerate(zip(started.waiting, started.pictures, strict=True)):
            if not isinstance(picture, Image.Image):
                yield Answer(index=waiting.index, image=None, result=picture)
                continue
            of_image = jax.tree.map(lambda x, i=i: x[i], found)
            chosen = _highest_scoring(of_image.scores, wanted.threshold)
            result = self._result(waiting, jax.tree.map(lambda x, chosen=chosen: x[chosen], of_image))
            if i in masks:
                result = self._with_masks(result, masks[i], of_image, chosen, wanted)
            yield Answer(index=waiting.index, image=np.asarray(picture), result=result)

    def _masks(self, started: _Started, found: Detections, wanted: _Wanted) -> dict[int, "_FoundMasks"]:
        """The masks that are needed of each image of a batch."""
        stride = self.config.model.mask_stride
        assert stride is not None
        queries = on_host(started.queries)
        chosen = [wanted.chosen(scores) for scores in found.scores[: len(started.waiting)]]
        number = max(map(len, chosen), default=0)
        logits = None
        if number:
            number = padded_number(number, self.config.model.mask_block, queries.shape[1])
            needed = np.zeros((len(queries), number), np.int32)
            for row, query, one in zip(needed, queries, chosen, strict=False):
                row[: len(one)] = query[one]
            logits = on_host(self._mask_steps.logits((self.params,), started.features, needed))
        masks = {}
        for i, (waiting, one) in enumerate(zip(started.waiting, chosen, strict=True)):
            of_image = np.zeros((0, 1, 1), np.float32) if logits is None else logits[i, : len(one)]
            size, original = waiting.placement.size, waiting.original_size
            masks[i] = _FoundMasks(one, queries[i], ImageMasks.of(of_image, size, original, stride))
        return masks

    def _with_masks(
        self, result: ImageDetections, masks: "_FoundMasks", found: Detections, chosen: np.ndarray, wanted: _Wanted
    ) -> ImageDetections:
        """A result with masks and panoptic segments.

        Args:
          result: the detections ``chosen`` [n] int.
          masks: of all detections that need one.
          found: all detections of the image.
        """
        run_lengths = None
        if wanted.masks:
            run_lengths = tuple(as_text(encoded(bitmap)) for bitmap in masks.of(chosen).bitmaps())
        panoptic = self._panoptic(masks, found, wanted) if wanted.panoptic else None
        return dataclasses.replace(result, run_lengths=run_lengths, panoptic=panoptic)

    def _panoptic(self, masks: "_FoundMasks", found: Detections, wanted: _Wanted) -> ImagePanoptic:
        candidates = panoptic_candidates(found.scores, masks.queries, wanted.panoptic_threshold)
        labels = found.labels[candidates]
        segments = masks.of(candidates).segments(labels, self.stuff_labels, wanted.mask_threshold)
        of_segments = candidates[segments.candidates]
        columns = found.labels[of_segments], found.scores[of_segments], segments.areas
        listed = zip(*(column.tolist() for column in columns), strict=True)
        return ImagePanoptic(
            segments.ids,
            tuple(
                Segment(
                    id=number,
                    label=self.category_ids.get(label, label),
                    name=self.class_names.get(label, str(label)),
                    is_thing=label not in self.stuff_labels,
                    score=score,
                    area=area,
                )
                for number, (label, score, area) in enumerate(listed, start=1)
            ),
        )

    def _result(self, waiting: WaitingImage, found: Detections) -> ImageDetections:
        """The detections [n] of one image, with names and category ids."""
        return ImageDetections(
            boxes=found.boxes,
            scores=found.scores,
            labels=mapped(found.labels, self.category_ids).astype(np.int64 if self.category_ids else np.int32),
            names=tuple(self.class_names.get(label, str(label)) for label in found.labels.tolist()),
            size=waiting.original_size,
            notes=tuple(notes(waiting, self.config.data)),
        )


class _FoundMasks(NamedTuple):
    """The masks of some detections of an image."""

    detections: np.ndarray
    """[n] int, the detections in ascending order."""
    queries: np.ndarray
    """[N] int, the query of every detection."""
    masks: ImageMasks

    def of(self, detections: np.ndarray) -> ImageMasks:
        """The masks of some of the detections."""
        return self.masks.select(np.searchsorted(self.detections, detections))


def _all_too_large(waiting: list[WaitingImage], error: OutOfMemoryError) -> Iterator[Answer]:
    """The answers of a batch that does not fit into memory."""
    for one in waiting:
        result = OutOfMemoryError(f"{one.name} was not predicted. {error}")
        yield Answer(index=one.index, image=None, result=result)


def _highest_scoring(scores: np.ndarray, threshold: float) -> np.ndarray:
    """The indices of the scores [Q] that reach the threshold, highest first."""
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= threshold]


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must be between 0 and 1.")
