"""The points that the queries of a Deformable DETR sample (Zhu et al., 2021, figure 6)."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from flax import nnx

from detr_jax.models.deformable_attention import DeformableAttention
from detr_jax.models.pyramid import Tokens
from detr_jax.structures import Outputs

if TYPE_CHECKING:  # deformable_detector.py imports this file
    from detr_jax.models.deformable_detector import DeformableDetector


class SamplingPoints(NamedTuple):
    """What the queries of one decoder layer read. Dimensions: ``B`` batch, ``Q`` queries, ``A`` heads, ``M`` levels,
    ``P`` points of a level."""

    outputs: Outputs
    """The outputs of the model, equal to those without the points to the last bit."""
    places: jax.Array
    """[B, Q, A, M, P, 2] float32, (x, y) in 0..1 of the unpadded image; some lie outside of it."""
    weights: jax.Array
    """[B, Q, A, M, P] float32, with the sum 1 for each head of a query."""


class _Recorder:
    """Replaces an attention module. It computes the same and also keeps places and weights."""

    def __init__(self, attention: DeformableAttention):
        self.attention = attention
        self.points: tuple[jax.Array, jax.Array] | None = None

    def __call__(self, queries: jax.Array, reference: jax.Array, tokens: Tokens, values: jax.Array) -> jax.Array:
        places, weights = self.attention.points(queries, reference, tokens)
        self.points = places / tokens.valid_ratios[:, None, None, :, None], weights
        return self.attention(queries, reference, tokens, values)


def sampling_points(
    model: "DeformableDetector", images: jax.Array, sizes: jax.Array, *, layer: int = -1
) -> SamplingPoints:
    """Computes the outputs together with the points that one decoder layer samples. It works under `jax.jit`.

    The model stays unchanged: the attention of a copy is replaced by one that keeps its points.

    Args:
      images: [B, H, W, 3] float32, normalised, padded at the bottom and right.
      sizes: [B, 2] int32, valid (height, width) of each image in pixels.
      layer: index among the decoder's layers; -1 is the last.
    """
    copy: Any = nnx.merge(*nnx.split(model))
    copy.decoder.remat = False  # values recorded inside a recomputed layer are lost outside of it
    recorder = _Recorder(copy.decoder.layers[layer].cross_attention)
    copy.decoder.layers[layer].cross_attention = recorder
    outputs = copy(images, sizes)
    assert recorder.points is not None
    return SamplingPoints(outputs, *recorder.points)
