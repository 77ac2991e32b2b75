"""The attention weights behind the predictions of a DETR (DETR, section 4.2, figures 3 and 6)."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from flax import nnx

from detr_jax.models.attention import MultiHeadAttention
from detr_jax.structures import Outputs

if TYPE_CHECKING:  # detr.py imports this file
    from detr_jax.models.detr import DETR


class AttentionMaps(NamedTuple):
    """Attention weights of one layer, float32. Dimensions: ``B`` batch, ``A`` heads, ``h, w`` cells, ``Q`` queries.

    Each map over ``h, w`` (the last two dimensions) sums to 1, and is 0 at padding.
    """

    outputs: Outputs
    """The outputs of the model, equal to those without the maps to the last bit."""
    decoder: jax.Array
    """[B, A, Q, h, w], cross-attention from the object queries to the cells of the image."""
    encoder: jax.Array | None
    """[B, A, h, w, h, w], self-attention from each cell (first two) to all cells (last two).

    None if the model has no encoder."""


class _Recorder:
    """Replaces an attention module. It computes the same and also keeps the weights."""

    def __init__(self, attention: MultiHeadAttention):
        self.attention = attention
        self.weights: jax.Array | None = None

    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array, **options: Any) -> jax.Array:
        self.weights = self.attention.weights(queries, keys, key_padding_mask=options.get("key_padding_mask"))
        return self.attention(queries, keys, values, **options)


def attention_maps(model: "DETR", images: jax.Array, sizes: jax.Array, *, layer: int = -1) -> AttentionMaps:
    """Computes the outputs together with the attention weights of one layer. It works under `jax.jit`.

    The model stays unchanged: the attention modules of a copy are replaced by ones that keep their weights.

    Args:
      images: [B, H, W, 3] float32, normalised, padded at the bottom and right.
      sizes: [B, 2] int32, valid (height, width) of each image in pixels.
      layer: index among the encoder's and the decoder's layers; -1 is the last.
    """
    copy = nnx.merge(*nnx.split(model))
    copy.encoder.remat = copy.decoder.remat = False  # values recorded inside a recomputed layer are lost outside of it
    cross = _Recorder(copy.decoder.layers[layer].cross_attention)
    copy.decoder.layers[layer].cross_attention = cross  # type: ignore[assignment]
    own = _Recorder(copy.encoder.layers[layer].self_attention) if len(copy.encoder.layers) else None
    if own is not None:
        copy.encoder.layers[layer].self_attention = own  # type: ignore[assignment]

    features = copy.features(images, sizes)
    decoded = copy.decode(copy.encode(features), features)
    outputs = copy.heads(decoded)
    cells = features.padding_mask.shape[1:]
    assert cross.weights is not None
    decoder = cross.weights.reshape(*cross.weights.shape[:3], *cells)
    if own is None or own.weights is None:
        return AttentionMaps(outputs, decoder, None)
    return AttentionMaps(outputs, decoder, own.weights.reshape(*own.weights.shape[:2], *cells, *cells))
