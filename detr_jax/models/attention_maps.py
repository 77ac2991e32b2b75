"""Where a model looks: the attention weights behind its predictions (DETR, section 4.2, figures 3 and 6)."""

from typing import Any, NamedTuple

import jax
from flax import nnx

from detr_jax.models.attention import MultiHeadAttention
from detr_jax.models.detr import DETR
from detr_jax.structures import Outputs


class AttentionMaps(NamedTuple):
    """Attention weights of one layer, float32. Dimensions: ``B`` batch, ``A`` heads, ``h, w`` cells, ``Q`` queries.

    Each map over ``h, w`` (the last two dimensions) sums to 1, and is 0 at padding.
    """

    outputs: Outputs
    """The outputs of the model, bit for bit as without the maps."""
    decoder: jax.Array
    """[B, A, Q, h, w], from object queries to the image: cross-attention."""
    encoder: jax.Array | None
    """[B, A, h, w, h, w], from each cell (first two) to all (last two); None without an encoder."""


class _Recorder:
    """Stands in the place of an attention: does the same, and keeps the weights."""

    def __init__(self, attention: MultiHeadAttention):
        self.attention = attention
        self.weights: jax.Array | None = None

    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array, **options: Any) -> jax.Array:
        self.weights = self.attention.weights(queries, keys, key_padding_mask=options.get("key_padding_mask"))
        return self.attention(queries, keys, values, **options)


def attention_maps(model: DETR, images: jax.Array, sizes: jax.Array, *, layer: int = -1) -> AttentionMaps:
    """Predictions with the attention weights of one layer, the last by default; may be compiled with `jax.jit`.

    The model is left as it is: attentions of a copy are replaced by ones that keep their weights.

    Args:
      images: [B, H, W, 3] float32, normalised, padded at the bottom and right.
      sizes: [B, 2] int32, valid (height, width) of each image in pixels.
      layer: index among the encoder's and the decoder's layers.
    """
    copy = nnx.merge(*nnx.split(model))
    copy.encoder.remat = copy.decoder.remat = False  # what a recomputed layer keeps is lost outside of it
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
