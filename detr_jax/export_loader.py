"""Run an exported detector. It needs only jax, numpy, and flatbuffers, with which jax reads the programs.

from loader import Detector

detector = Detector("FOLDER")
for found in detector.predict([image], threshold=0.5):  # image: [H, W, 3] uint8, RGB
    print([detector.names.get(int(label), label) for label in found.labels], found.scores, found.boxes)
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export


class Detections(NamedTuple):
    """The detections in one image [n], or in a batch of images [B, N] with N detections each."""

    boxes: np.ndarray
    """[n, 4] or [B, N, 4] float32, xyxy in pixels of the original image; not clipped to it."""
    scores: np.ndarray
    """[n] or [B, N] float32 in 0..1, the probability of the label."""
    labels: np.ndarray
    """[n] or [B, N] int, category ids of the training data."""
    masks: np.ndarray | None = None
    """[n, H, W] bool, in the size of the original image. For a batch, logits [B, N, rows, columns] float32, with a cell
    for ``mask_stride`` pixels of the padded image. None if the artefact was exported without masks."""

    def of_image(self, position: int, threshold: float) -> "Detections":
        """The detections of one image of a batch with at least this score, highest score first."""
        boxes, scores, labels = self.boxes[position], self.scores[position], self.labels[position]
        order = np.argsort(-scores, kind="stable")
        kept = order[scores[order] >= threshold]
        masks = None if self.masks is None else self.masks[position][kept]
        return Detections(boxes[kept], scores[kept], labels[kept], masks)


class Detector:
    """An exported detector."""

    def __init__(self, folder: str | Path = Path(__file__).parent):
        """Reads a folder that ``detr-jax export`` wrote; by default, the folder of this file."""
        self.folder = Path(folder)
        self.description = json.loads((self.folder / "export.json").read_text())
        self.buckets = [(height, width) for height, width in self.description["buckets"]]
        """(height, width) in pixels of the shapes that images are padded to."""
        names = json.loads((self.folder / "labels.json").read_text(encoding="utf-8"))
        self.names: dict[int, str] = {int(label): name for label, name in names.items()}
        """Name by label; labels without a name are missing."""
        ids = self.description.get("category_ids") or {}
        self._category_ids = np.arange(self.description["num_classes"], dtype=np.int64 if ids else np.int32)
        self._category_ids[[int(output) for output in ids]] = list(ids.values())
        self._weights: tuple[Any, ...] = ()
        if weights := self.description["weights"]:
            if Path(weights).name != weights:
                raise ValueError(f"export.json names the weights {weights!r}: they must be in its folder.")
            with np.load(self.folder / weights, allow_pickle=False) as arrays:
                self._weights = (jax.device_put([arrays[f"arr_{i}"] for i in range(len(arrays.files))]),)

    def __call__(self, images: np.ndarray, sizes: np.ndarray, original_sizes: np.ndarray) -> Detections:
        """All detections in a batch, in no particular order.

        Args:
          images: [B, H, W, 3] uint8, RGB, padded at the bottom and right to one of ``buckets``.
          sizes: [B, 2] int32, (height, width) in pixels of each image inside its bucket.
          original_sizes: [B, 2] int32, (height, width) in pixels before any resizing. The boxes refer to this size.
        """
        bucket = np.shape(images)[1:3]
        if bucket not in self.buckets or np.ndim(images) != 4 or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {list(np.shape(images))}: give uint8 [B, H, W, 3] with (H, W) one of "
                f"{', '.join(map(str, self.buckets))}."
            )
        sizes, original_sizes = np.asarray(sizes, np.int32), np.asarray(original_sizes, np.int32)
        found = map(np.asarray, self._program(bucket)(*self._weights, images, sizes, original_sizes))
        boxes, scores, outputs, *masks = found
        return Detections(boxes, scores, self._category_ids[outputs], *masks)

    def predict(self, images: Sequence[Any], threshold: float = 0.5) -> list[Detections]:
        """The detections in each image with at least this score, highest score first.

        Args:
          images: each is [H, W, 3] uint8, RGB, or an object that numpy converts to such an array, for example an RGB
            image of PIL. It can have any size that fits into a bucket after resizing.
          threshold: the lowest score of a detection.
        """
        images = [np.asarray(image) for image in images]
        resized = [self.resize(image) for image in images]
        bucket_of = [self._bucket(image.shape[:2]) for image in resized]
        found: dict[int, Detections] = {}
        for bucket in dict.fromkeys(bucket_of):
            members = [i for i, its_bucket in enumerate(bucket_of) if its_bucket == bucket]
            batch = np.zeros((len(members), *bucket, 3), np.uint8)
            for row, i in zip(batch, members, strict=True):
                row[: resized[i].shape[0], : resized[i].shape[1]] = resized[i]
            sizes = np.array([resized[i].shape[:2] for i in members], np.int32)
            originals = np.array([images[i].shape[:2] for i in members], np.int32)
            of_batch = self(batch, sizes, originals)
            for position, i in enumerate(members):
                one = of_batch.of_image(position, threshold)
                if one.masks is not None:
                    one = one._replace(masks=self._masks(one.masks, resized[i].shape[:2], images[i].shape[:2]))
                found[i] = one
        return [found[i] for i in range(len(images))]

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The image [H, W, 3] uint8 resized as in validation, with antialiased linear interpolation."""
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"An image is {image.dtype} {list(image.shape)}: give an RGB image, uint8 [H, W, 3].")
        short_side, max_long_side = self.description["short_side"], self.description["max_long_side"]
        if not short_side:
            return image
        height, width = image.shape[:2]
        short, long = min(height, width), max(height, width)
        rounding, exact = self.description.get("resize_rounding", "original"), short_side
        if rounding in ("nearest", "down"):
            scale, half = min(short_side / short, max_long_side / long), 0.5 * (rounding == "nearest")
            short_side, long_side = max(1, int(short * scale + half)), max(1, int(long * scale + half))
        else:
            if long / short * short_side > max_long_side:
                exact = max_long_side * short / long
                short_side = max(1, round(exact))
            if short_side == short:
                return image
            long_side = int((exact if rounding == "transformers" else short_side) * long / short)
        size = (short_side, long_side) if height <= width else (long_side, short_side)
        if size == (height, width):
            return image
        values = jax.image.resize(image.astype(np.float32), (*size, 3), "linear", antialias=True)
        return np.clip(np.rint(np.asarray(values)), 0, 255).astype(np.uint8)

    def _masks(self, logits: np.ndarray, size: tuple[int, ...], original_size: tuple[int, ...]) -> np.ndarray:
        """The masks [n, H, W] bool of logits [n, rows, columns], for an image that was resized to ``size``.

        The logits are interpolated bilinearly to the resized image, of which the nearest pixel is taken.
        """
        stride = self.description["mask_stride"]
        cells = [-(-side // stride) for side in size]
        masks = np.zeros((len(logits), *original_size), bool)
        for mask, found in zip(masks, logits[:, : cells[0], : cells[1]], strict=True):
            for axis, (count, pixels, wanted) in enumerate(zip(cells, size, original_size, strict=True)):
                shown = np.arange(wanted) * pixels // wanted
                place = np.clip((shown + np.float32(0.5)) * np.float32(count / pixels) - np.float32(0.5), 0, count - 1)
                first = place.astype(int)
                weight = (place - first).astype(np.float32).reshape([-1 if i == axis else 1 for i in range(2)])
                low, high = (found.take(x, axis=axis) for x in (first, np.minimum(first + 1, count - 1)))
                found = low + (high - low) * weight
            mask[:] = found > 0
        return masks

    def _bucket(self, size: tuple[int, int]) -> tuple[int, int]:
        """The smallest bucket that holds an image of this (height, width) in pixels."""
        holding = [bucket for bucket in self.buckets if bucket[0] >= size[0] and bucket[1] >= size[1]]
        if not holding:
            raise ValueError(
                f"An image of {size[0]} x {size[1]} pixels (height x width) is larger than every bucket of this "
                f"artefact: {', '.join(map(str, self.buckets))}."
            )
        return min(holding, key=lambda bucket: bucket[0] * bucket[1])

    @functools.cache  # noqa: B019 (one entry per bucket)
    def _program(self, bucket: tuple[int, int]) -> Any:
        file = self.folder / f"model_{bucket[0]}x{bucket[1]}.stablehlo"
        return jax.jit(export.deserialize(bytearray(file.read_bytes())).call)
