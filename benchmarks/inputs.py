"""Random images and objects of COCO's sizes and counts, the same for both sides of a comparison."""

from typing import NamedTuple

import numpy as np
from scipy.stats import geom

MAX_OBJECTS = 100
"""Targets are padded to this number, as in batches of COCO, whose fullest image has 93."""
MEAN_OBJECTS = 7.3
"""COCO train2017: 860,001 boxes in 118,287 images."""


class Inputs(NamedTuple):
    """A batch. Dimensions: ``B`` images of ``h, w`` pixels on buckets of ``H, W``, ``T`` targets."""

    images: np.ndarray
    """[B, H, W, 3] uint8, zero beyond the image."""
    sizes: np.ndarray
    """[B, 2] int32, (h, w)."""
    boxes: np.ndarray
    """[B, T, 4] float32, cxcywh in 0..1 of the image."""
    labels: np.ndarray
    """[B, T] int32."""
    count: np.ndarray
    """[B] int32, real targets."""


def random_inputs(
    rng: np.random.Generator, batch: int, size: tuple[int, int], num_classes: int, stride: int = 32
) -> Inputs:
    """Images of ``size`` on the smallest bucket of whole strides that holds them."""
    height, width = size
    bucket = [-(-side // stride) * stride for side in size]
    images = np.zeros((batch, *bucket, 3), np.uint8)
    images[:, :height, :width] = rng.integers(0, 256, (batch, height, width, 3), np.uint8)
    boxes, labels = random_objects(rng, batch, num_classes)
    sizes = np.tile(np.array(size, np.int32), (batch, 1))
    return Inputs(images, sizes, boxes, labels, coco_counts(rng, batch))


def random_objects(rng: np.random.Generator, batch: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [B, T, 4] float32 inside of the image, cxcywh in 0..1, and labels [B, T] int32."""
    extent = rng.uniform(0.02, 0.6, (batch, MAX_OBJECTS, 2))
    center = rng.uniform(extent / 2, 1 - extent / 2)
    labels = rng.integers(0, num_classes, (batch, MAX_OBJECTS), np.int32)
    return np.concatenate([center, extent], -1).astype(np.float32), labels


def coco_counts(rng: np.random.Generator, batch: int) -> np.ndarray:
    """Objects of each image [B] int32: the evenly spaced quantiles of a geometric distribution with COCO's mean."""
    quantiles = geom(1 / (1 + MEAN_OBJECTS), loc=-1).ppf((np.arange(batch) + 0.5) / batch)
    return rng.permutation(np.clip(quantiles, 0, MAX_OBJECTS).astype(np.int32))
