"""The transformer encoder and decoder of DETR (section 3.2, appendix A.3).

Dimensions: ``B`` batch, ``N`` image tokens, ``Q`` object queries, ``D`` model width, ``L`` decoder layers.

If ``rngs`` (stream "dropout") is given, dropout is applied to attention probabilities, after the activation of the
feed-forward network, and after each sublayer.

Only the matrix products of linear layers and attention are computed in ``config.dtype``. The residual stream is
float32, because bfloat16 has 8 significant bits and would round away the small values that late sublayers add.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from detr_jax.config import TransformerConfig
from detr_jax.models.attention import MultiHeadAttention, dropout
from detr_jax.models.initializers import fan_in_uniform, xavier_uniform
from detr_jax.models.rematerialization import recomputed


class LayerNorm(nnx.LayerNorm):
    """Layer norm with PyTorch's epsilon, in float32."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        super().__init__(dim, epsilon=1e-5, dtype=jnp.float32, rngs=rngs)


class Residual(nnx.Module):
    """A residual connection around a sublayer, in float32, with dropout and a layer norm.

    The layer norm comes after the addition or, with pre-norm, before the sublayer.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.pre_norm = config.pre_norm
        self.dropout = config.dropout
        self.norm = LayerNorm(config.hidden_dim, rngs=rngs)

    def __call__(self, x: jax.Array, sublayer: Callable[[jax.Array], jax.Array], rngs: nnx.Rngs | None) -> jax.Array:
        answer = sublayer(self.norm(x) if self.pre_norm else x).astype(x.dtype)
        x = x + dropout(answer, self.dropout, rngs)
        return x if self.pre_norm else self.norm(x)


class FeedForward(nnx.Module):
    """Two linear layers with a ReLU and dropout between them."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
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
        """Maps x [B, N, D] to [B, N, D]."""
        return self.contract(dropout(jax.nn.relu(self.expand(x)), self.dropout, rngs))


class EncoderLayer(nnx.Module):
    """Self-attention over the image tokens, then a feed-forward network."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.self_attention = MultiHeadAttention.from_config(config, rngs=rngs)
        self.self_attention_residual = Residual(config, rngs=rngs)
        self.feed_forward = FeedForward(config, rngs=rngs)
        self.feed_forward_residual = Residual(config, rngs=rngs)

    def __call__(
        self, x: jax.Array, padding_mask: jax.Array, position: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps x [B, N, D] to [B, N, D]. padding_mask is [B, N], True for padding, and position is [B, N, D]."""

        def attend(x: jax.Array) -> jax.Array:
            placed = x + position
            return self.self_attention(placed, placed, x, key_padding_mask=padding_mask, rngs=rngs)

        x = self.self_attention_residual(x, attend, rngs)
        return self.feed_forward_residual(x, lambda x: self.feed_forward(x, rngs=rngs), rngs)


class DecoderLayer(nnx.Module):
    """Self-attention among the queries, cross-attention to the image, then a feed-forward network."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
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
        """Maps x [B, Q, D] to [B, Q, D].

        object_queries is [1, Q, D], memory and position are [B, N, D], and padding_mask is [B, N].
        """

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
    """A stack of encoder layers. With pre-norm, a layer norm follows the last one."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.layers = nnx.List([EncoderLayer(config, rngs=rngs) for _ in range(config.encoder_layers)])
        self.norm = LayerNorm(config.hidden_dim, rngs=rngs) if config.pre_norm else None
        self.remat = config.remat in ("transformer", "all")

    def __call__(
        self, x: jax.Array, padding_mask: jax.Array, position: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps image tokens x [B, N, D] to the memory [B, N, D]. position is [B, N, D] and padding_mask is [B, N]."""
        for layer in self.layers:
            x = (recomputed(layer) if self.remat else layer)(x, padding_mask, position, rngs=rngs)
        return x if self.norm is None else self.norm(x)


class Decoder(nnx.Module):
    """A stack of decoder layers. One shared layer norm is applied to the output of every layer."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
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
        """Decodes object_queries [Q, D]. memory and position are [B, N, D], and padding_mask is [B, N].

        The input of the first layer is zero. Each layer adds the object queries and the positions itself.

        Returns:
          The outputs of all layers after the layer norm, [L, B, Q, D]. The next layer reads the output before the norm.
        """
        x = jnp.zeros((memory.shape[0], *object_queries.shape))
        outputs = []
        for layer in self.layers:
            call = recomputed(layer) if self.remat else layer
            x = call(x, object_queries[None], memory, padding_mask, position, rngs=rngs)
            outputs.append(self.norm(x))
        return jnp.stack(outputs)
