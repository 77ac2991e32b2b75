"""The encoder and decoder layers of Deformable DETR (Zhu et al., 2021, section 4.1, appendix A.3).

Dimensions: ``B`` batch, ``S`` tokens of all levels, ``M`` levels, ``Q`` object queries, ``D`` model width.

Locations, softmax, sums of samples, norms and the residual stream are float32. In bfloat16, a location would miss its
cell.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from detr_jax.config import DeformableDETRConfig, DeformableTransformerConfig, Precision
from detr_jax.models.attention import MultiHeadAttention
from detr_jax.models.deformable_attention import DeformableAttention
from detr_jax.models.pyramid import Tokens
from detr_jax.models.rematerialization import recomputed
from detr_jax.models.transformer import FeedForward, Residual
from detr_jax.structures import Predictions


class DeformableEncoderLayer(nnx.Module):
    """Deformable self-attention of the tokens, then a feed-forward network."""

    def __init__(self, config: DeformableTransformerConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        self.self_attention = DeformableAttention(config, dtype=dtype, value_dtype=dtype, rngs=rngs)
        self.self_attention_residual = Residual(config, rngs=rngs)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.feed_forward_residual = Residual(config, rngs=rngs)

    def __call__(
        self, x: jax.Array, reference: jax.Array, tokens: Tokens, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps x [B, S, D] to [B, S, D]. reference is [B, S, M, 2]."""
        x = self.self_attention_residual(
            x, lambda x: self.self_attention(x + tokens.position, reference, tokens, x), rngs
        )
        return self.feed_forward_residual(x, lambda x: self.feed_forward(x, rngs=rngs), rngs)


class DeformableEncoder(nnx.Module):
    """A stack of encoder layers. Each cell looks around its own centre in every level."""

    def __init__(self, config: DeformableTransformerConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([DeformableEncoderLayer(config, rngs=rngs) for _ in range(config.encoder_layers)])
        self.remat = config.remat in ("transformer", "all")

    def __call__(self, tokens: Tokens, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """The memory [B, S, D] of the tokens."""
        x = tokens.values
        reference = tokens.centers[:, :, None] * tokens.valid_ratios[:, None]
        for layer in self.layers:
            x = (recomputed(layer) if self.remat else layer)(x, reference, tokens, rngs=rngs)
        return x


class QueryStart(NamedTuple):
    """What the decoder starts from."""

    position: jax.Array
    """[B, Q, D] float32, which every layer adds to the content."""
    content: jax.Array
    """[B, Q, D] float32, the input of the first layer."""
    reference: jax.Array
    """[B, Q, 2] points (x, y) or [B, Q, 4] boxes cxcywh, float32 in 0..1 of the unpadded image."""


class DeformableDecoderLayer(nnx.Module):
    """Self-attention among the queries, deformable attention to the image, then a feed-forward network."""

    def __init__(self, config: DeformableTransformerConfig, *, value_dtype: jnp.dtype, rngs: nnx.Rngs):
        self.self_attention = MultiHeadAttention.from_config(config, rngs=rngs)
        self.self_attention_residual = Residual(config, rngs=rngs)
        self.cross_attention = DeformableAttention(
            config, dtype=jnp.dtype(config.dtype), value_dtype=value_dtype, rngs=rngs
        )
        self.cross_attention_residual = Residual(config, rngs=rngs)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.feed_forward_residual = Residual(config, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        position: jax.Array,
        reference: jax.Array,
        memory: jax.Array,
        tokens: Tokens,
        *,
        attn_mask: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Maps x [B, Q, D] to [B, Q, D].

        position is [B, Q, D], reference is [B, Q, 2] or [B, Q, 4] in 0..1 of the unpadded image, memory is [B, S, D].
        attn_mask [B, Q, Q] bool is True where a query may not see another one.
        """
        ratios = jnp.tile(tokens.valid_ratios[:, None], reference.shape[-1] // 2)
        scaled = reference[:, :, None] * ratios

        def attend_to_queries(x: jax.Array) -> jax.Array:
            placed = x + position
            return self.self_attention(placed, placed, x, attn_mask=attn_mask, rngs=rngs)

        x = self.self_attention_residual(x, attend_to_queries, rngs)
        x = self.cross_attention_residual(x, lambda x: self.cross_attention(x + position, scaled, tokens, memory), rngs)
        return self.feed_forward_residual(x, lambda x: self.feed_forward(x, rngs=rngs), rngs)


def decoder_layers(config: DeformableTransformerConfig, rngs: nnx.Rngs) -> nnx.List[DeformableDecoderLayer]:
    """The layers of a decoder, in float32 except for the projection of all tokens, the only large product."""
    exact, value_dtype = dataclasses.replace(config, dtype=Precision.FLOAT32), jnp.dtype(config.dtype)
    layers = [DeformableDecoderLayer(exact, value_dtype=value_dtype, rngs=rngs) for _ in range(config.decoder_layers)]
    return nnx.List(layers)


class DeformableDecoder(nnx.Module):
    """A stack of decoder layers, each of which may refine the boxes of the layer before."""

    def __init__(self, config: DeformableDETRConfig, *, rngs: nnx.Rngs):
        self.layers = decoder_layers(config, rngs)
        self.refine_boxes = config.refine_boxes
        self.remat = config.remat in ("transformer", "all")

    def __call__(
        self,
        start: QueryStart,
        memory: jax.Array,
        tokens: Tokens,
        predict: Callable[[int, jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Predictions, jax.Array]:
        """The predictions of every layer, and the output [B, Q, D] of the last one.

        Args:
          start: the queries.
          memory: [B, S, D].
          tokens: where the cells of the memory are.
          predict: returns logits [B, Q, C] and boxes [B, Q, 4] for the number of a layer, its output [B, Q, D] and its
            reference points or boxes.
        """
        x, reference = start.content, start.reference
        logits, boxes = [], []
        for i, layer in enumerate(self.layers):
            call = recomputed(layer) if self.remat else layer
            x = call(x, start.position, reference, memory, tokens, rngs=rngs)
            predicted = predict(i, x, reference)
            logits.append(predicted[0])
            boxes.append(predicted[1])
            if self.refine_boxes:
                reference = lax.stop_gradient(boxes[-1])
        return Predictions(jnp.stack(logits), jnp.stack(boxes)), x
