"""The structures that the parts of the library exchange. Their fields are read by name.

Each is a frozen dataclass that JAX knows as a pytree: `jax.jit`, `jax.device_put`, `jax.tree.map` and prefixes of
shardings work on it, and a field that is None has no leaves. Batches hold numpy arrays on the host and JAX arrays on
the devices. The tests check the shapes and types that the annotations give.

Dimensions: ``B`` batch, ``H, W`` height and width of the bucket in pixels, ``T`` targets of an image (padded), ``L``
decoder layers, ``Q`` object queries, ``C`` classes, ``N`` detections of an image.

Masks are carried as bits. A byte holds eight rows of one column: bit ``k`` of byte row ``i`` is row ``8 i + k``
(`detr_jax.masks`).
"""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Real, UInt8

S = TypeVar("S")

UNMATCHED = -1
"""The query of a target that has none."""

if TYPE_CHECKING:
    Array = Any
else:
    Array = jax.Array | np.ndarray | jax.ShapeDtypeStruct
"""A JAX array, a numpy array, or an abstract array (`jax.ShapeDtypeStruct`)."""


@dataclass_transform(frozen_default=True)
def structure(cls: type[S]) -> type[S]:
    """Makes a class a frozen dataclass and a pytree whose leaves are its fields, except for ``static`` ones.

    JAX also builds such a tree with other leaves than arrays, for example shardings. That does not call ``__init__``,
    so that checks of shapes and types see only what the library builds.
    """
    made = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]
    static = tuple(f.name for f in fields if f.metadata.get("static"))
    names = tuple(f.name for f in fields if f.name not in static)

    def flatten_with_keys(value: S) -> tuple[list[tuple[jax.tree_util.GetAttrKey, Any]], tuple[Any, ...]]:
        children = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in names]
        return children, tuple(getattr(value, name) for name in static)

    def unflatten(kept: tuple[Any, ...], children: Iterable[Any]) -> S:
        value = object.__new__(made)
        for name, child in (*zip(names, children, strict=True), *zip(static, kept, strict=True)):
            object.__setattr__(value, name, child)
        return value

    def flatten(value: S) -> tuple[list[Any], tuple[Any, ...]]:
        return [getattr(value, name) for name in names], tuple(getattr(value, name) for name in static)

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made


@structure
class Targets:
    """The objects of a batch of images, padded to a common number."""

    boxes: Float32[Array, "B T 4"]
    """[B, T, 4] float32, cxcywh in 0..1 of the unpadded image; zero from ``count`` on."""
    labels: Int[Array, "B T"]
    """[B, T] int32 in 0..C-1."""
    count: Int[Array, " B"]
    """[B] int32, how many of the T are real."""
    masks: UInt8[Array, "B T byte_rows W"] | None = None
    """[B, T, ceil(H / 8), W] uint8, the mask of each object in pixels of the bucket as bits; zero in the padding. None:
    the masks are not read."""


@structure
class Predictions:
    """Logits and boxes of the queries, after every decoder layer."""

    logits: Float32[Array, "L B Q outputs"]
    """[L, B, Q, C + 1] float32 with "no object" as the last class, or [L, B, Q, C] for sigmoid classification."""
    boxes: Float32[Array, "L B Q 4"]
    """[L, B, Q, 4] float32, cxcywh in 0..1 of the unpadded image."""
    absent: Bool[Array, "L B Q"] | None = None
    """[L, B, Q] bool, queries that are only padding, so that no target is given to them. None: no query is."""


@structure
class Denoising:
    """Predictions of denoising queries, whose targets are known without matching (DN-DETR; DINO, section 3.3)."""

    predictions: Predictions
    """As those of the object queries, with the denoising queries as ``Q``."""
    matched_query: Int[Array, "B P"]
    """[B, P] int32, the queries that have a target; -1 for none."""
    target: Int[Array, "B P"]
    """[B, P] int32, the target of each of them."""
    num_groups: Int[Array, ""]
    """[] int32, how often each target has a query. The loss is divided by it."""


@structure
class Outputs:
    """What a detector returns. The last layer is the answer; everything else trains it."""

    layers: Predictions
    """The predictions of the object queries after every decoder layer."""
    proposals: Predictions | None = None
    """Proposals of the encoder in two-stage detectors, with one layer and the proposals as ``Q``."""
    denoising: Denoising | None = None
    """Denoising queries, in training only."""
    mask_features: Any | None = None
    """What the detector computes masks from (`DetectorModule.mask_logits`). None: it predicts no masks."""
    class_agnostic_proposals: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether the targets of all proposals have the label 0, which then means "an object"."""

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

    boxes: Real[Array, "B N 4"]
    """[B, N, 4] float32, xyxy in pixels of the original image; not clipped to it."""
    scores: Float[Array, "B N"]
    """[B, N] float32 in 0..1."""
    labels: Int[Array, "B N"]
    """[B, N] int32, labels of the model."""


@structure
class BatchInputs:
    """The part of a batch that a training step reads."""

    images: UInt8[Array, "B H W 3"]
    """[B, H, W, 3] uint8, RGB, zero-padded at the bottom and right."""
    valid_sizes: Int[Array, "B 2"]
    """[B, 2] int32, (height, width) in pixels of the image inside its bucket."""
    targets: Targets


@structure
class BatchInfo:
    """The part of a batch that identifies its images."""

    image_ids: Int[Array, " B"]
    """[B] int64; -1 if a validation batch has no image at this position."""
    original_sizes: Int[Array, "B 2"]
    """[B, 2] int32, (height, width) in pixels before any resizing."""
    skipped: Int[Array, " B"]
    """[B] int64, the id of the planned image that could not be read and was replaced; -1 for none."""


@structure
class Batch:
    """Images of one bucket with their objects."""

    inputs: BatchInputs
    info: BatchInfo
