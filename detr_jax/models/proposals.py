"""The first stage of Deformable DETR with two stages, and of DINO: boxes proposed by the encoder.

Source: Zhu et al., 2021, section 4.2; Zhang et al., 2022, section 3.4.

Dimensions: ``B`` batch, ``S`` tokens of all levels, ``Q`` object queries, ``C`` classes, ``D`` model width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from detr_jax.boxes import inverse_sigmoid
from detr_jax.models.initializers import fan_in_uniform, xavier_uniform
from detr_jax.models.positions import coordinate_embedding
from detr_jax.models.pyramid import Tokens
from detr_jax.models.transformer import LayerNorm

_FAR = 1e4
"""A logit whose sigmoid is exactly 1 in float32, with the gradient 0."""


class Anchors(NamedTuple):
    """The box that each token starts from."""

    logits: jax.Array
    """[B, S, 4] float32, logits of cxcywh in 0..1 of the unpadded image; `_FAR` where a token proposes nothing."""
    proposes: jax.Array
    """[B, S] bool, whether a token proposes a box: not padding, and not at the border."""


def token_anchors(tokens: Tokens) -> Anchors:
    """A box around the centre of each cell. Its sides are 0.05 of the image in the finest level, doubled per level."""
    sides = jnp.concatenate(
        [jnp.full(height * width, 0.05 * 2.0**level) for level, (height, width) in enumerate(tokens.shapes)]
    )
    sides = jnp.broadcast_to(sides[None, :, None], tokens.centers.shape)
    boxes = jnp.concatenate([tokens.centers, sides], axis=-1)
    proposes = ((boxes > 0.01) & (boxes < 0.99)).all(axis=-1) & ~tokens.padding_mask
    safe = jnp.where(proposes[..., None], boxes, 0.5)
    return Anchors(jnp.where(proposes[..., None], jnp.log(safe / (1 - safe)), _FAR), proposes)


class Proposer(nnx.Module):
    """Norms the memory for the encoder's heads."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.memory_projection, self.memory_norm = _linear(dim, rngs), LayerNorm(dim, rngs=rngs)

    def project(self, memory: jax.Array, anchors: Anchors) -> jax.Array:
        """The memory [B, S, D] for the encoder's heads, with tokens that propose nothing set to 0 before."""
        kept = jnp.where(anchors.proposes[..., None], memory, 0.0)
        return self.memory_norm(self.memory_projection(kept))


class QueryProposer(Proposer):
    """Makes queries of the boxes that the encoder's heads propose, too."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        super().__init__(dim, rngs=rngs)
        self.query_projection, self.query_norm = _linear(2 * dim, rngs), LayerNorm(2 * dim, rngs=rngs)

    def queries(self, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Position and content [B, Q, D] of the queries for boxes [B, Q, 4] cxcywh in 0..1."""
        embedded = coordinate_embedding(boxes, self.query_projection.in_features // 4)
        position, content = jnp.split(self.query_norm(self.query_projection(embedded)), 2, axis=-1)
        return position, content


def _linear(width: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(width, width, kernel_init=xavier_uniform(), bias_init=fan_in_uniform(width), rngs=rngs)


def gathered(x: jax.Array, chosen: jax.Array) -> jax.Array:
    """Rows [B, N, ...] of x [B, S, ...] by their indices [B, N]."""
    return jnp.take_along_axis(x, chosen[..., None], axis=1)


def best_boxes(scores: jax.Array, box_logits: jax.Array, number: int) -> jax.Array:
    """The boxes [B, number, 4] of the highest scores [B, S], from their logits [B, S, 4]. No gradient flows through."""
    _, chosen = lax.top_k(scores, number)
    return jax.nn.sigmoid(lax.stop_gradient(gathered(box_logits, chosen)))


def box_logits_from(reference: jax.Array, correction: jax.Array, eps: float) -> jax.Array:
    """Logits [..., 4] of a box: the correction [..., 4], relative to a reference point [..., 2] or box [..., 4].

    ``eps`` is the least distance of the reference from 0 and from 1 (`inverse_sigmoid`).
    """
    start = inverse_sigmoid(reference, eps)
    missing = correction.shape[-1] - start.shape[-1]
    return correction + jnp.pad(start, [(0, 0)] * (start.ndim - 1) + [(0, missing)])
