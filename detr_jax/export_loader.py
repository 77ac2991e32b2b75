"""Runs an exported detector: ``pip install jax numpy flatbuffers`` (with which jax reads it) is all that is needed.

from loader import Detector

detector = Detector("FOLDER")
for boxes, scores, labels in detector.predict([image], threshold=0.5):  # image: [H, W, 3] uint8, RGB
    print([detector.names.get(int(label), label) for label in labels], scores, boxes)
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export


class Found(NamedTuple):
    """Detections. Dimensions: ``n`` of one image; ``B, Q`` batch and object queries of a batch."""

    boxes: np.ndarray
    """[n, 4] or [B, Q, 4] float32, xyxy in pixels of the original image; not clipped to it."""
    scores: np.ndarray
    """[n] or [B, Q] float32, probability of the label."""
    labels: np.ndarray
    """[n] or [B, Q] int, category ids of the training data."""


class Detector:
    """An exported detector."""

    def __init__(self, folder: str | Path = Path(__file__).parent):
        """Reads the folder that ``detr-jax export`` wrote; by default the one that this file is in."""
        self.folder = Path(folder)
        self.description = json.loads((self.folder / "export.json").read_text())
        self.buckets = [(height, width) for height, width in self.description["buckets"]]
        """Shapes (height, width) in pixels that images are padded to."""
        names = json.loads((self.folder / "labels.json").read_text(encoding="utf-8"))
        self.names: dict[int, str] = {int(label): name for label, name in names.items()}
        """Name by label, as far as they are known."""
        ids = self.description.get("category_ids") or {}
        self._category_ids = np.arange(self.description["num_classes"], dtype=np.int64 if ids else np.int32)
        self._category_ids[[int(output) for output in ids]] = list(ids.values())
        self._weights: tuple[Any, ...] = ()
        if self.description["weights"]:
            with np.load(self.folder / self.description["weights"]) as arrays:
                self._weights = (jax.device_put([arrays[f"arr_{i}"] for i in range(len(arrays.files))]),)

    def __call__(self, images: np.ndarray, sizes: np.ndarray, original_sizes: np.ndarray) -> Found:
        """What every object query finds in a batch.

        Args:
          images: [B, H, W, 3] uint8, RGB, padded at the bottom and right to one of ``buckets``.
          sizes: [B, 2] int32, valid (height, width) in pixels.
          original_sizes: [B, 2] int32, (height, width) in pixels before resizing, which the boxes refer to.
        """
        bucket = np.shape(images)[1:3]
        if bucket not in self.buckets or np.ndim(images) != 4 or images.dtype != np.uint8:
            raise ValueError(
                f"images are {images.dtype} {list(np.shape(images))}: give uint8 [B, H, W, 3] with (H, W) one of "
                f"{', '.join(map(str, self.buckets))}."
            )
        sizes, original_sizes = np.asarray(sizes, np.int32), np.asarray(original_sizes, np.int32)
        boxes, scores, outputs = map(np.asarray, self._program(bucket)(*self._weights, images, sizes, original_sizes))
        return Found(boxes, scores, self._category_ids[outputs])

    def predict(self, images: Sequence[Any], threshold: float = 0.5) -> list[Found]:
        """The detections with at least this score in each of some images, the surest first.

        An image is [H, W, 3] uint8, RGB, or what numpy makes one of, such as an RGB picture of PIL. It may have any
        size: it is resized and padded as the model wants it.
        """
        images = [np.asarray(image) for image in images]
        resized = [self.resize(image) for image in images]
        bucket_of = [self._bucket(image.shape[:2]) for image in resized]
        found: dict[int, Found] = {}
        for bucket in dict.fromkeys(bucket_of):
            members = [i for i, its_bucket in enumerate(bucket_of) if its_bucket == bucket]
            batch = np.zeros((len(members), *bucket, 3), np.uint8)
            for place, i in zip(batch, members, strict=True):
                place[: resized[i].shape[0], : resized[i].shape[1]] = resized[i]
            sizes = np.array([resized[i].shape[:2] for i in members], np.int32)
            originals = np.array([images[i].shape[:2] for i in members], np.int32)
            for i, *one in zip(members, *self(batch, sizes, originals), strict=True):
                order = np.argsort(-one[1], kind="stable")
                found[i] = Found(*(values[order[one[1][order] >= threshold]] for values in one))
        return [found[i] for i in range(len(images))]

    def resize(self, image: np.ndarray) -> np.ndarray:
        """The image with the short side, and at most the long side, of validation; antialiased linear."""
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"An image is {image.dtype} {list(image.shape)}: give uint8 [H, W, 3], RGB.")
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

    def _bucket(self, size: tuple[int, int]) -> tuple[int, int]:
        """The smallest bucket that holds an image."""
        holding = [bucket for bucket in self.buckets if bucket[0] >= size[0] and bucket[1] >= size[1]]
        if not holding:
            raise ValueError(
                f"An image of {size[0]} x {size[1]} pixels (height x width) fits on no bucket of this artefact: "
                f"{', '.join(map(str, self.buckets))}."
            )
        return min(holding, key=lambda bucket: bucket[0] * bucket[1])

    @functools.cache  # noqa: B019 (one entry a bucket)
    def _program(self, bucket: tuple[int, int]) -> Any:
        file = self.folder / f"model_{bucket[0]}x{bucket[1]}.stablehlo"
        return jax.jit(export.deserialize(bytearray(file.read_bytes())).call)
