"""`Matched`: what a loss term reads."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from detr_jax.config import Classification
from detr_jax.matching import UNMATCHED
from detr_jax.structures import Predictions, Targets


@dataclass(frozen=True, eq=False)
class Matched:
    """Predictions of some layers, the targets, and the query of each target.

    Dimensions: ``L`` layers, ``B`` images, ``Q`` queries, ``T`` targets of an image (padded), ``C`` classes.
    """

    predictions: Predictions
    """logits [L, B, Q, C + 1] (or [L, B, Q, C] with ``classification`` "sigmoid") and boxes [L, B, Q, 4]."""
    targets: Targets
    """boxes [B, T, 4] cxcywh in 0..1, labels [B, T], count [B]."""
    matched_query: jax.Array
    """[L, B, T] int32, the query of each target; -1 for padding, and for targets that found no query."""
    batch_counts: jax.Array
    """[N] int32, the targets of each image of the whole batch; the B images are all of them or a micro-batch."""
    classification: Classification = Classification.SOFTMAX
    """What the logits mean."""

    @property
    def num_images(self) -> int:
        """Images of the whole batch."""
        return self.batch_counts.shape[0]

    @property
    def num_queries(self) -> int:
        """Queries per image."""
        return self.predictions.logits.shape[2]

    @property
    def num_classes(self) -> int:
        """Classes, without "no object"."""
        return self.predictions.logits.shape[3] - (self.classification == "softmax")

    @functools.cached_property
    def num_boxes(self) -> jax.Array:
        """[] float32, target boxes of the whole batch, at least 1: the divisor of sums over boxes."""
        return jnp.maximum(self.batch_counts.sum().astype(jnp.float32), 1.0)

    @functools.cached_property
    def num_matched(self) -> jax.Array:
        """[] float32, targets of the whole batch that find a query."""
        return jnp.minimum(self.batch_counts, self.num_queries).sum().astype(jnp.float32)

    @functools.cached_property
    def is_matched(self) -> jax.Array:
        """[L, B, T] bool, whether a target found a query."""
        return self.matched_query != UNMATCHED

    @functools.cached_property
    def matched_boxes(self) -> jax.Array:
        """[L, B, T, 4] float32, the predicted box for each target; of query 0 if it found none."""
        return jnp.take_along_axis(self.predictions.boxes, self._gather, axis=2)

    @functools.cached_property
    def matched_logits(self) -> jax.Array:
        """[L, B, T, C + 1 or C] float32, the logits for each target; of query 0 if it found none."""
        return jnp.take_along_axis(self.predictions.logits, self._gather, axis=2)

    @functools.cached_property
    def query_labels(self) -> jax.Array:
        """[L, B, Q] int32, the label of each query's target; C, which is "no object", for queries without one."""
        layers, batch, queries, _ = self.predictions.logits.shape
        slots = jnp.where(self.is_matched, self.matched_query, queries)  # past the end: dropped
        layer_index, image_index = jnp.ogrid[:layers, :batch]
        no_object = jnp.full((layers, batch, queries), self.num_classes, jnp.int32)
        return no_object.at[layer_index[..., None], image_index[..., None], slots].set(
            jnp.broadcast_to(self.targets.labels[None], slots.shape), mode="drop"
        )

    @functools.cached_property
    def _gather(self) -> jax.Array:
        return jnp.where(self.is_matched, self.matched_query, 0)[..., None]
