"""The transformer encoder and decoder of DETR (section 3.2, appendix A.3).

Dimensions: ``B`` batch, ``N`` image tokens, ``Q`` object queries, ``D`` model width, ``L`` decoder layers.

Dropout is on where ``rngs`` (stream "dropout") is given: on attention probabilities, after the activation
of the feed-forward network, and after each sublayer.

Only the products of linear layers and attention are in ``config.dtype``: what flows from layer to layer, the residual
stream, is float32, because bfloat16's 8 bits would round away what a late sublayer adds to it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from detr_jax.config import ModelConfig
from detr_jax.models.attention import MultiHeadAttention, dropout
from detr_jax.models.initializers import fan_in_uniform, xavier_uniform
from detr_jax.models.rematerialization import recomputed


class LayerNorm(nnx.LayerNorm):
    """Layer norm with PyTorch's epsilon, in float32."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        super().__init__(dim, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)


class Residual(nnx.Module):
    """The frame of each sublayer: float32 residual, dropout, and a layer norm after it (or before it: pre-norm)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.pre_norm = config.pre_norm
        self.dropout = config.dropout
        self.norm = LayerNorm(config.hidden_dim, rngs=rngs)

    def __call__(self, x: jax.Array, sublayer: Callable[[jax.Array], jax.Array], rngs: nnx.Rngs | None) -> jax.Array:
        answer = sublayer(self.norm(x) if self.pre_norm else x).astype(x.dtype)
        x = x + dropout(answer, self.dropout, rngs)
        return x if self.pre_norm else self.norm(x)


class FeedForward(nnx.Module):
    """Two linear layers with a ReLU and dropout between them."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.dropout = config.dropout
        self.expand, self.contract = (
            nnx.Linear(
                fan_in,
                fan_out,
                kernel_init=xavier_uniform(),
                bias_init=fan_in_uniform(fan_in),
                dtype=jnp.dtype(config.dtype),
                rngs=rngs,
            )
            for fan_in, fan_out in (
                (config.hidden_dim, config.feedforward_dim),
                (config.feedforward_dim, config.hidden_dim),
            )
        )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """[B, N, D] to [B, N, D]."""
        return self.contract(dropout(jax.nn.relu(self.expand(x)), self.dropout, rngs))


class EncoderLayer(nnx.Module):
    """Self-attention over the image tokens, then a feed-forward network."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.self_attention = MultiHeadAttention.from_config(config, rngs=rngs)
        self.self_attention_residual = Residual(config, rngs=rngs)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.feed_forward_residual = Residual(config, rngs=rngs)

    def __call__(
        self, x: jax.Array, padding_mask: jax.Array, position: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """x [B, N, D], padding_mask [B, N] (True at padding), position [B, N, D] to [B, N, D]."""

        def attend(x: jax.Array) -> jax.Array:
            placed = x + position
            return self.self_attention(placed, placed, x, key_padding_mask=padding_mask, rngs=rngs)

        x = self.self_attention_residual(x, attend, rngs)
        return self.feed_forward_residual(x, lambda x: self.feed_forward(x, rngs=rngs), rngs)


class DecoderLayer(nnx.Module):
    """Self-attention among the queries, cross-attention to the image, then a feed-forward network."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.self_attention = MultiHeadAttention.from_config(config, rngs=rngs)
        self.self_attention_residual = Residual(config, rngs=rngs)
        self.cross_attention = MultiHeadAttention.from_config(config, rngs=rngs)
        self.cross_attention_residual = Residual(config, rngs=rngs)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.feed_forward_residual = Residual(config, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        object_queries: jax.Array,
        memory: jax.Array,
        padding_mask: jax.Array,
        position: jax.Array,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """x [B, Q, D], object_queries [1, Q, D], memory and position [B, N, D], padding_mask [B, N] to [B, Q, D]."""

        def attend_to_queries(x: jax.Array) -> jax.Array:
            placed = x + object_queries
            return self.self_attention(placed, placed, x, rngs=rngs)

        def attend_to_image(x: jax.Array) -> jax.Array:
            return self.cross_attention(
                x + object_queries, memory + position, memory, key_padding_mask=padding_mask, rngs=rngs
            )

        x = self.self_attention_residual(x, attend_to_queries, rngs)
        x = self.cross_attention_residual(x, attend_to_image, rngs)
        return self.feed_forward_residual(x, lambda x: self.feed_forward(x, rngs=rngs), rngs)


class Encoder(nnx.Module):
    """A stack of encoder layers; with pre-norm, a layer norm behind the last."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([EncoderLayer(config, rngs=rngs) for _ in range(config.encoder_layers)])
        self.norm = LayerNorm(config.hidden_dim, rngs=rngs) if config.pre_norm else None
        self.remat = config.remat in ("transformer", "all")

    def __call__(
        self, x: jax.Array, padding_mask: jax.Array, position: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Image tokens x and position [B, N, D], padding_mask [B, N] to the memory [B, N, D]."""
        for layer in self.layers:
            x = (recomputed(layer) if self.remat else layer)(x, padding_mask, position, rngs=rngs)
        return x if self.norm is None else self.norm(x)


class Decoder(nnx.Module):
    """A stack of decoder layers whose every output passes one shared layer norm on its way out."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([DecoderLayer(config, rngs=rngs) for _ in range(config.decoder_layers)])
        self.norm = LayerNorm(config.hidden_dim, rngs=rngs)
        self.remat = config.remat in ("transformer", "all")

    def __call__(
        self,
        object_queries: jax.Array,
        memory: jax.Array,
        padding_mask: jax.Array,
        position: jax.Array,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Decodes object_queries [Q, D] against memory and position [B, N, D], padding_mask [B, N].

        The targets start at zero; the queries are added inside each layer, as positions are.

        Returns:
          The normed outputs of all layers, [L, B, Q, D]; the next layer reads the output before the norm.
        """
        x = jnp.zeros((memory.shape[0], *object_queries.shape))
        outputs = []
        for layer in self.layers:
            call = recomputed(layer) if self.remat else layer
            x = call(x, object_queries[None], memory, padding_mask, position, rngs=rngs)
            outputs.append(self.norm(x))
        return jnp.stack(outputs)
