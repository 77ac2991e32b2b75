"""The structures that the parts of the library exchange. Their fields are read by name.

Each is a frozen dataclass that JAX knows as a pytree: `jax.jit`, `jax.device_put`, `jax.tree.map` and prefixes of
shardings work on it, and a field that is None has no leaves. Batches hold numpy arrays on the host and JAX arrays on
the devices.

Dimensions: ``B`` batch, ``H, W`` height and width of the bucket in pixels, ``T`` targets of an image (padded), ``L``
decoder layers, ``Q`` object queries, ``C`` classes, ``N`` detections of an image.
"""

import dataclasses
from typing import Any, TypeVar, dataclass_transform

import jax

S = TypeVar("S")

UNMATCHED = -1
"""The query of a target that has none."""

Array = Any
"""A JAX array, a numpy array, or an abstract array (`jax.ShapeDtypeStruct`)."""


@dataclass_transform(frozen_default=True)
def structure(cls: type[S]) -> type[S]:
    """Makes a class a frozen dataclass and a pytree whose leaves are its fields."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, eq=False)(cls))


@structure
class Targets:
    """The objects of a batch of images, padded to a common number."""

    boxes: Array
    """[B, T, 4] float32, cxcywh in 0..1 of the unpadded image; zero from ``count`` on."""
    labels: Array
    """[B, T] int32 in 0..C-1."""
    count: Array
    """[B] int32, how many of the T are real."""
    masks: Array | None = None
    """Masks of the objects, for detectors that predict them."""


@structure
class Predictions:
    """Logits and boxes of the queries, after every decoder layer."""

    logits: Array
    """[L, B, Q, C + 1] float32 with "no object" as the last class, or [L, B, Q, C] for sigmoid classification."""
    boxes: Array
    """[L, B, Q, 4] float32, cxcywh in 0..1 of the unpadded image."""
    masks: Array | None = None
    """Mask logits of the queries, for detectors that predict them."""


@structure
class Denoising:
    """Predictions of denoising queries, whose targets are known without matching (DN-DETR; DINO, section 3.3)."""

    predictions: Predictions
    """As those of the object queries, with the denoising queries as ``Q``."""
    matched_query: Array
    """[B, G, T] int32, the query of each target in each of ``G`` groups; -1 for none."""


@structure
class Outputs:
    """What a detector returns. The last layer is the answer; everything else trains it."""

    layers: Predictions
    """The predictions of the object queries after every decoder layer."""
    proposals: Predictions | None = None
    """Proposals of the encoder in two-stage detectors, with one layer and the proposals as ``Q``."""
    denoising: Denoising | None = None
    """Denoising queries, in training only."""

    @property
    def logits(self) -> Array:
        """[L, B, Q, C + 1] float32, or [L, B, Q, C] for sigmoid classification; the last layer is the answer."""
        return self.layers.logits

    @property
    def boxes(self) -> Array:
        """[L, B, Q, 4] float32, cxcywh in 0..1 of the unpadded image; the last layer is the answer."""
        return self.layers.boxes


@structure
class Detections:
    """Detections in the images of a batch, in no particular order."""

    boxes: Array
    """[B, N, 4] float32, xyxy in pixels of the original image; not clipped to it."""
    scores: Array
    """[B, N] float32 in 0..1."""
    labels: Array
    """[B, N] int32, labels of the model."""
    masks: Array | None = None
    """Masks of the detections, for detectors that predict them."""


@structure
class BatchInputs:
    """The part of a batch that a training step reads."""

    images: Array
    """[B, H, W, 3] uint8, RGB, zero-padded at the bottom and right."""
    valid_sizes: Array
    """[B, 2] int32, (height, width) in pixels of the image inside its bucket."""
    targets: Targets


@structure
class BatchInfo:
    """The part of a batch that identifies its images."""

    image_ids: Array
    """[B] int64; -1 if a validation batch has no image at this position."""
    original_sizes: Array
    """[B, 2] int32, (height, width) in pixels before any resizing."""
    skipped: Array
    """[B] int64, the id of the planned image that could not be read and was replaced; -1 for none."""


@structure
class Batch:
    """Images of one bucket with their objects."""

    inputs: BatchInputs
    info: BatchInfo
