"""Prediction: the compiled step, and `Detector`, from a checkpoint and any images to what is in them."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Self, overload

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike
from PIL import Image

from detr_jax.checkpoints import CheckpointError, load_category_ids, load_class_names, load_model
from detr_jax.compilation_cache import keep_compiled_programs
from detr_jax.config import Config, DataConfig, check_prediction
from detr_jax.data.batching import usable_cores
from detr_jax.data.images import ImageLike, decode, exif_rule, has_more_frames, is_dark, open_image
from detr_jax.data.labels import mapped
from detr_jax.data.placement import Placement, lay, place, prediction_buckets
from detr_jax.data.source import DataError
from detr_jax.host_memory import keep_freed_memory
from detr_jax.memory import OutOfMemoryError, fitting, on_host
from detr_jax.models.attention_maps import attention_maps
from detr_jax.models.detr import DETR
from detr_jax.postprocess import Detections, detections
from detr_jax.results import ImageAttention, ImageDetections
from detr_jax.sharding import batch_sharding, mesh_for_batch, replicated
from detr_jax.wording import counted, one_line

PredictStep = Callable[[tuple[Any, ...], ArrayLike, ArrayLike, ArrayLike], Detections]

FIRST_FRAME = "has several frames or pages, of which the first was taken"
SHRUNK = "is larger than every bucket of the model, and was shrunk to fit one"
THIN = "is so long and thin that it is shrunk to less than half of the usual height or width: cut it to find more"
DARK = (
    "uses only a small part of the levels that its file can hold, and is nearly black: set the highest possible level, "
    "such as --config.data.max_level=4095"
)
TINY = "is only a few pixels large, which show the model nothing"

_CUT = "Make the image smaller, or cut it into parts."
_TINY = 8  # pixels of the longer side


def create_predict_step(graph: nnx.GraphDef, mesh: Mesh, where: Any = None) -> PredictStep:
    """Builds ``predict(values, images, sizes, original_sizes) -> Detections``, with the batch over the mesh.

    ``where`` is the sharding of the values (of each tree, or of each array); without it they are on every device.
    The detections are on every device.

    Args of the step:
      values: the model's pure trees, one or several, that `nnx.merge` puts together with ``graph``.
      images: [B, H, W, 3] uint8, padded at the bottom and right.
      sizes: [B, 2] int32, valid (height, width) in pixels.
      original_sizes: [B, 2] int32, (height, width) in pixels before any resizing, which the boxes refer to.
    """

    def predict(values: tuple[Any, ...], images: jax.Array, sizes: jax.Array, original_sizes: jax.Array) -> Detections:
        values = values if where is None else jax.lax.with_sharding_constraint(values, replicated(mesh))
        model = nnx.merge(graph, *values)
        predictions = model(model.normalize(images, sizes), sizes)
        return detections(predictions.logits[-1], predictions.boxes[-1], original_sizes)

    batch, full = batch_sharding(mesh), replicated(mesh)
    return jax.jit(predict, in_shardings=(where or full, batch, batch, batch), out_shardings=full)


class Answer(NamedTuple):
    """What became of one of the images of a stream."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    """Position in the stream."""
    image: np.ndarray | None
    """[H, W, 3] uint8, RGB, the image that the boxes refer to; None if it could not be read or predicted."""
    result: ImageDetections | DataError | OutOfMemoryError


class _Waiting(NamedTuple):
    """An image that has its bucket, and is not read yet."""

    index: int  # type: ignore[assignment]
    image: Path | Image.Image
    size: tuple[int, int]
    placement: Placement

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.image) if isinstance(self.image, Path) else f"Image {self.index}"

    def lay_on(self, bucket: np.ndarray, data: DataConfig) -> Image.Image:
        """Reads the image, and writes it resized on its bucket [H, W, 3] uint8; returns it in its own size."""
        with fitting(f"{self.name}, {self.size[0]} x {self.size[1]} pixels,", _CUT):
            picture = self.image
            if isinstance(picture, Path):
                picture = decode(picture, exif=exif_rule(data), max_level=data.max_level)
            lay(picture, self.placement, bucket)
        return picture


class Detector:
    """A trained detector that takes images of any size.

    Images are resized as in validation, put on the smallest of a few buckets, and predicted in batches. Each bucket
    is compiled once, when it is first needed or by `warmup`; compiled programs are kept on disk between processes
    (`detr_jax.compilation_cache`).

    Attributes:
      model: the `DETR`.
      config: the configuration that it was trained with.
      params: its values as a pure tree, on the devices; what is put in their place is used from then on.
      class_names: name by label; empty if the checkpoint holds none.
      category_ids: category id by label, which results have as their labels; empty if the labels are the ids.
      buckets: (height, width) in pixels, by area.
      batch_size: images predicted together.
    """

    def __init__(
        self,
        model: DETR,
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
        graph, values = nnx.split(model)
        self.model = model
        self.config = config
        self.params = jax.device_put(nnx.as_pure(values), replicated(mesh))
        self.class_names = dict(class_names or {})
        self.category_ids = dict(category_ids or {})
        self.buckets = prediction_buckets(config)
        self.batch_size = batch_size
        self._graph = graph
        self._predict = create_predict_step(graph, mesh)

    def __repr__(self) -> str:
        backbone, queries = self.config.model.backbone, counted(self.config.model.num_queries, "query", "queries")
        kind = f"ResNet-{2 + sum(backbone.blocks) * (2 if backbone.block == 'basic' else 3)}"
        buckets, largest = counted(len(self.buckets), "bucket", "buckets"), "{} x {}".format(*self.buckets[-1])
        ending = f"; {kind}, {queries}; {buckets} up to {largest}; batch_size={self.batch_size})"
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
        """The detector of a checkpoint; on a CPU, JAX and the C library are told to keep memory (`keep_freed_memory`).

        Args:
          path: the workdir of a run, of which the newest checkpoint is taken, or a checkpoint.
          ema: take the moving average of the parameters where there is one.
          batch_size: images predicted together: 1 for the least delay of a single image; more keep an accelerator
            busy on many. A batch that is not full costs as much as a full one. Of several devices, as many are used
            as share a batch evenly.
          data: how images are prepared, such as ``val_short_side``, instead of as in training.

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
        """Finds objects.

        Args:
          images: one image, or a list or tuple of them (`ImageLike`), of any sizes. The orientation that EXIF notes in
            a file is applied, as viewers do, unless the configuration has ``data.exif="ignore"``; pictures of PIL and
            arrays are taken as they are.
          threshold: the lowest score of an object in the result; 0 gives all queries.

        Returns:
          The `ImageDetections` of the image, or of each in the order given, with boxes in pixels of the original.

        Raises:
          DataError: an image cannot be read, or is none; `stream` goes on with the others instead.
          OutOfMemoryError: an image or its bucket does not fit into memory; `stream` goes on here too.
          CheckpointError: the model's answers are not numbers.
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
        """Finds objects in any number of images, of which few are in memory at a time.

        An image waits until as many as a batch holds want the same bucket; GPUs and TPUs work on a batch while the next
        is read. Of files only the headers are read before that; pictures and arrays wait as copies, at most
        ``batch_size - 1`` for each bucket. Arguments are those of `predict`.

        Yields:
          An `Answer` for each image, in the order in which batches are done; ``index`` tells which image it is.
        """
        _check_threshold(threshold)
        busy: tuple[list[_Waiting], list[Any], Detections] | None = None
        in_background = jax.default_backend() != "cpu"  # else `_start` may return when all is done
        with ThreadPoolExecutor(min(self.batch_size, usable_cores()), "images") as threads:
            for batch in self._batches(images):
                if isinstance(batch, Answer):
                    yield batch
                    continue
                if busy and not in_background:
                    yield from self._finish(*busy, threshold)
                    busy = None
                try:
                    started = self._start(batch, threads)
                except OutOfMemoryError as error:
                    yield from _all_too_large(batch, error)
                    continue
                if busy:
                    yield from self._finish(*busy, threshold)
                busy = started
            if busy:
                yield from self._finish(*busy, threshold)

    def attention(self, image: ImageLike, threshold: float = 0.5) -> ImageAttention:
        """Finds objects in one image, as `predict` does, and tells where the model looked.

        Its program, another than that of `predict`, is compiled once for each bucket; errors are those of `predict`.
        """
        _check_threshold(threshold)
        with fitting("The image", _CUT):
            opened, size = self._opened(image, "The image")
        waiting = _Waiting(0, opened, size, place(size, self.config, self.buckets))
        with self._fitting(waiting.placement.bucket, 1, "The attention on the bucket"):
            images = np.zeros((1, *waiting.placement.bucket, 3), np.uint8)
            picture = waiting.lay_on(images[0], self.config.data)
            height, width = waiting.placement.size
            inputs = images, np.array([[height, width]], np.int32), np.array([size], np.int32)
            found, decoder, encoder = on_host(self._attend(self.params, *inputs))
        check_scores(found.scores)
        chosen = _surest(found.scores, threshold)
        stride = self.config.model.backbone.stride
        rows, columns = -(-height // stride), -(-width // stride)
        return ImageAttention(
            image=np.asarray(picture),
            found=self._result(waiting, jax.tree.map(lambda x: x[chosen], found)),
            decoder=decoder[chosen, :rows, :columns],
            encoder=None if encoder is None else encoder[:rows, :columns, :rows, :columns],
            cells=(height / stride, width / stride),
        )

    @functools.cached_property
    def _attend(self) -> Callable[..., tuple[Detections, jax.Array, jax.Array | None]]:
        """Of the only image of a batch: detections, and the last layers' attention, the mean over heads."""

        def attend(params: Any, images: jax.Array, sizes: jax.Array, original_sizes: jax.Array) -> Any:
            model = nnx.merge(self._graph, params)
            maps = attention_maps(model, model.normalize(images, sizes), sizes)
            found = detections(maps.outputs.logits[-1], maps.outputs.boxes[-1], original_sizes)
            encoder = None if maps.encoder is None else maps.encoder[0].mean(axis=0)
            return jax.tree.map(lambda x: x[0], found), maps.decoder[0].mean(axis=0), encoder

        return jax.jit(attend)

    def warmup(self, sizes: Iterable[tuple[int, int]] | None = None) -> None:
        """Compiles, or reads from disk, what images of these (height, width) need; by default all buckets.

        Raises:
          OutOfMemoryError: a bucket does not fit into memory.
        """
        buckets = self.buckets if sizes is None else {place(size, self.config, self.buckets).bucket for size in sizes}
        for bucket in buckets:
            valid = np.full((self.batch_size, 2), bucket, np.int32)
            with self._fitting(bucket, self.batch_size):
                images = np.zeros((self.batch_size, *bucket, 3), np.uint8)
                jax.block_until_ready(self._predict((self.params,), images, valid, valid))

    def _fitting(self, bucket: tuple[int, int], images: int, what: str = "The bucket") -> AbstractContextManager[None]:
        """Says, if memory runs out inside, that this many images on a bucket do not fit, and what helps."""
        advice = "Use a machine with more memory." if self.config.data.val_short_side else _CUT
        if images > 1:
            advice = f"Lower batch_size={images}. {advice}"
        return fitting(f"{what} of {bucket[0]} x {bucket[1]} pixels, for {images} image(s),", advice)

    def _opened(self, image: ImageLike, name: str) -> tuple[Path | Image.Image, tuple[int, int]]:
        data = self.config.data
        return open_image(image, name, exif=exif_rule(data), max_level=data.max_level)

    def _batches(self, images: Iterable[ImageLike]) -> Iterator[list[_Waiting] | Answer]:
        """Images of one bucket each, at most ``batch_size`` of them; and answers for what is no image."""
        waiting: dict[tuple[int, int], list[_Waiting]] = {}
        for index, image in enumerate(images):
            try:
                with fitting(f"Image {index}", _CUT):
                    found, size = self._opened(image, f"Image {index}")
            except (DataError, OutOfMemoryError) as error:
                yield Answer(index, None, error)
                continue
            placement = place(size, self.config, self.buckets)
            group = waiting.setdefault(placement.bucket, [])
            group.append(_Waiting(index, found, size, placement))
            if len(group) == self.batch_size:
                yield waiting.pop(placement.bucket)
        yield from waiting.values()

    def _start(
        self, batch: list[_Waiting], threads: ThreadPoolExecutor
    ) -> tuple[list[_Waiting], list[Any], Detections]:
        """Reads a batch and sets the devices to work on it."""
        bucket = batch[0].placement.bucket
        with self._fitting(bucket, self.batch_size):
            images = np.zeros((self.batch_size, *bucket, 3), np.uint8)
        sizes = np.full((self.batch_size, 2), bucket, np.int32)
        original_sizes = np.ones((self.batch_size, 2), np.int32)

        def fill(i: int, waiting: _Waiting) -> Image.Image | DataError | OutOfMemoryError:
            try:
                picture = waiting.lay_on(images[i], self.config.data)
            except (DataError, OutOfMemoryError) as error:
                return error
            sizes[i], original_sizes[i] = waiting.placement.size, waiting.size
            return picture

        pictures = list(threads.map(fill, range(len(batch)), batch))
        with self._fitting(bucket, self.batch_size):
            return batch, pictures, self._predict((self.params,), images, sizes, original_sizes)

    def _finish(
        self, batch: list[_Waiting], pictures: list[Any], found: Detections, threshold: float
    ) -> Iterator[Answer]:
        """The answers of a batch, when the devices are done with it."""
        try:
            with self._fitting(batch[0].placement.bucket, self.batch_size):
                found = on_host(found)
        except OutOfMemoryError as error:
            yield from _all_too_large(batch, error)
            return
        check_scores(found.scores)
        for i, (waiting, picture) in enumerate(zip(batch, pictures, strict=True)):
            if not isinstance(picture, Image.Image):
                yield Answer(waiting.index, None, picture)
                continue
            chosen = _surest(found.scores[i], threshold)
            result = self._result(waiting, jax.tree.map(lambda x, i=i, chosen=chosen: x[i][chosen], found))
            yield Answer(waiting.index, np.asarray(picture), result)

    def _result(self, waiting: _Waiting, found: Detections) -> ImageDetections:
        names = tuple(self.class_names.get(label, str(label)) for label in found.labels.tolist())
        ids = mapped(found.labels, self.category_ids).astype(np.int64 if self.category_ids else np.int32)
        return ImageDetections(found.boxes, found.scores, ids, names, waiting.size, tuple(self._notes(waiting)))

    def _notes(self, waiting: _Waiting) -> Iterator[str]:
        """What is unusual in an image, as the rest of a sentence that begins with its name."""
        if isinstance(waiting.image, Path) and has_more_frames(waiting.image):
            yield FIRST_FRAME
        if isinstance(waiting.image, Path) and is_dark(waiting.image, self.config.data.max_level):
            yield DARK
        if max(waiting.size) < _TINY:
            yield TINY
        if min(waiting.placement.size) < self.config.data.val_short_side / 2:
            yield THIN
        elif waiting.placement.shrunk:
            yield SHRUNK


def _all_too_large(batch: list[_Waiting], error: OutOfMemoryError) -> Iterator[Answer]:
    """The answers of a batch that does not fit into memory."""
    for waiting in batch:
        yield Answer(waiting.index, None, OutOfMemoryError(f"{waiting.name} was not predicted. {error}"))


def check_scores(scores: np.ndarray) -> None:
    """Refuses the answers of a broken model, which would otherwise look like images without objects.

    Raises:
      CheckpointError: a score is not a finite number.
    """
    if not np.isfinite(scores).all():
        raise CheckpointError(
            "The model's scores are not finite numbers: its training diverged, or its file is damaged; take an earlier "
            "checkpoint."
        )


def _surest(scores: np.ndarray, threshold: float) -> np.ndarray:
    """Which of the scores [Q] reach the threshold, the highest first."""
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] >= threshold]


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold} must lie between 0 and 1.")
