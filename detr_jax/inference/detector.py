"""`Detector`: a trained detector that takes images of any size."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self, overload

import jax
import numpy as np
from flax import nnx
from PIL import Image

from detr_jax.checkpoints import load_category_ids, load_class_names, load_model
from detr_jax.compilation_cache import keep_compiled_programs
from detr_jax.config import Config, DataConfig, check_prediction
from detr_jax.data.batching import usable_cores
from detr_jax.data.images import ImageLike
from detr_jax.data.labels import mapped
from detr_jax.data.placement import place, prediction_buckets
from detr_jax.data.source import DataError
from detr_jax.host_memory import keep_freed_memory
from detr_jax.inference.attention import AttentionStep, create_attention_step
from detr_jax.inference.batching import (
    Answer,
    WaitingImage,
    batches_by_bucket,
    bucket_fitting,
    open_waiting,
    read_batch,
)
from detr_jax.inference.notes import notes
from detr_jax.inference.predict import check_scores, create_predict_step
from detr_jax.memory import OutOfMemoryError, on_host
from detr_jax.models.detector import DetectorModule
from detr_jax.results import ImageAttention, ImageDetections, ImageSampling
from detr_jax.sharding import mesh_for_batch, replicated
from detr_jax.structures import Detections
from detr_jax.wording import counted, one_line


class _Started(NamedTuple):
    """A batch that the devices work on."""

    waiting: list[WaitingImage]
    pictures: list[Image.Image | DataError | OutOfMemoryError]
    detections: Detections


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
        self.buckets = prediction_buckets(config)
        self.batch_size = batch_size
        self._predict = create_predict_step(graph, mesh)

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
        names, ids = load_class_names(Path(path)), load_category_ids(Path(path))
        return cls(model, config, names, category_ids=ids, batch_size=batch_size)

    @overload
    def predict(self, images: ImageLike, threshold: float = 0.5) -> ImageDetections: ...

    @overload
    def predict(
        self, images: list[ImageLike] | tuple[ImageLike, ...], threshold: float = 0.5
    ) -> list[ImageDetections]: ...

    def predict(
        self, images: ImageLike | list[ImageLike] | tuple[ImageLike, ...], threshold: float = 0.5
    ) -> ImageDetections | list[ImageDetections]:
        """Detects objects in one or several images.

        Args:
          images: one image, or a list or tuple of them (`ImageLike`), of any sizes. The EXIF orientation of a file is
            applied, as image viewers do, unless the configuration has ``data.exif="ignore"``. PIL images and arrays
            are used as they are.
          threshold: the lowest score of a detection; 0 returns all queries.

        Returns:
          The `ImageDetections` of the image, or a list of them in the order of the images. Boxes are in pixels of the
          original image.

        Raises:
          DataError: an image cannot be read. `stream` continues with the other images instead.
          OutOfMemoryError: an image or its bucket does not fit into memory. `stream` continues in this case too.
          CheckpointError: the scores of the model are not finite numbers.
        """
        several = images if isinstance(images, list | tuple) else [images]
        results: dict[int, ImageDetections] = {}
        for answer in self.stream(several, threshold):
            if not isinstance(answer.result, ImageDetections):
                raise answer.result
            results[answer.index] = answer.result
        ordered = [results[index] for index in range(len(results))]
        return ordered if several is images else ordered[0]

    def stream(self, images: Iterable[ImageLike], threshold: float = 0.5) -> Iterator[Answer]:
        """Detects objects in any number of images and keeps only a few of them in memory.

        Images are grouped by bucket and predicted as soon as ``batch_size`` share one. GPUs and TPUs compute a batch
        while the next one is read. Before that, only the headers of files are read. PIL images and arrays wait as
        copies, at most ``batch_size - 1`` per bucket. The arguments are those of `predict`.

        Yields:
          An `Answer` for each image, in the order in which the batches are finished. Its ``index`` identifies the
          image.
        """
        _check_threshold(threshold)
        started: _Started | None = None
        in_background = jax.default_backend() != "cpu"  # on CPUs, `_start` may return after the computation
        with ThreadPoolExecutor(min(self.batch_size, usable_cores()), "images") as threads:
            for batch in batches_by_bucket(images, self.config, self.buckets, self.batch_size):
                if isinstance(batch, Answer):
                    yield batch
                    continue
                if started and not in_background:
                    yield from self._finish(started, threshold)
                    started = None
                try:
                    following = self._start(batch, threads)
                except OutOfMemoryError as error:
                    yield from _all_too_large(batch, error)
                    continue
                if started:
                    yield from self._finish(started, threshold)
                started = following
            if started:
                yield from self._finish(started, threshold)

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

    def warmup(self, sizes: Iterable[tuple[int, int]] | None = None) -> None:
        """Compiles the prediction for images of these sizes, or reads it from disk.

        Args:
          sizes: (height, width) of images in pixels; by default, all buckets are compiled.

        Raises:
          OutOfMemoryError: a bucket does not fit into memory.
        """
        buckets = self.buckets if sizes is None else {place(size, self.config, self.buckets).bucket for size in sizes}
        for bucket in buckets:
            valid = np.full((self.batch_size, 2), bucket, np.int32)
            with bucket_fitting(bucket, self.batch_size, self.config.data):
                images = np.zeros((self.batch_size, *bucket, 3), np.uint8)
                jax.block_until_ready(self._predict((self.params,), images, valid, valid))

    def _start(self, waiting: list[WaitingImage], threads: ThreadPoolExecutor) -> _Started:
        """Reads a batch and starts its prediction."""
        batch = read_batch(waiting, self.batch_size, self.config.data, threads)
        with bucket_fitting(waiting[0].placement.bucket, self.batch_size, self.config.data):
            found = self._predict((self.params,), batch.images, batch.valid_sizes, batch.original_sizes)
        return _Started(waiting, batch.pictures, found)

    def _finish(self, started: _Started, threshold: float) -> Iterator[Answer]:
        """Waits for the prediction of a batch and yields its answers."""
        try:
            with bucket_fitting(started.waiting[0].placement.bucket, self.batch_size, self.config.data):
                found = on_host(started.detections)
        except OutOfMemoryError as error:
            yield from _all_too_large(started.waiting, error)
            return
        check_scores(found.scores)
        for i, (waiting, picture) in enumerate(zip(started.waiting, started.pictures, strict=True)):
            if not isinstance(picture, Image.Image):
                yield Answer(index=waiting.index, image=None, result=picture)
                continue
            chosen = _highest_scoring(found.scores[i], threshold)
            result = self._result(waiting, jax.tree.map(lambda x, i=i, chosen=chosen: x[i][chosen], found))
            yield Answer(index=waiting.index, image=np.asarray(picture), result=result)

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
