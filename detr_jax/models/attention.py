"""Multi-head attention with padding and attention masks (DETR, appendix A.1)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Float32, Shaped

from detr_jax.config import ModelConfig
from detr_jax.models.initializers import xavier_uniform
from detr_jax.structures import Array


def dropout(x: jax.Array, rate: float, rngs: nnx.Rngs | None) -> jax.Array:
    """Inverted dropout of x [..., N]; the identity where ``rngs`` is None (inference).

    Random numbers cost more than the softmax before them, so every word of 32 bits decides on four elements: each keeps
    its element if it is below ``256 * (1 - rate)``, which a row rounds up or down at random to make the rate exact.
    """
    if rngs is None or rate == 0.0:
        return x
    *rows, last = x.shape
    words = jax.random.bits(rngs.dropout(), (*rows, -(-last // 4)), jnp.uint32)
    threshold = jnp.floor(256 * (1.0 - rate) + jax.random.uniform(rngs.dropout(), (*rows, 1))).astype(jnp.uint32)
    keep = jnp.concatenate([(words >> shift & 0xFF) < threshold for shift in (0, 8, 16, 24)], axis=-1)[..., :last]
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def attention_bias(
    key_padding_mask: Bool[Array, "B K"] | None, attn_mask: Shaped[Array, "*M N K"] | None
) -> Float32[Array, "..."] | None:
    """Both masks as one float32 bias, added to the scores before the softmax.

    Args:
      key_padding_mask: [B, K] bool, True where a key is padding.
      attn_mask: [N, K] or [B, N, K]; bool, True where a query may not look, or float, added as it is.

    Returns:
      A bias that broadcasts to [B, heads, N, K], or None without masks. It is finite everywhere: a query
      whose keys are all masked gets uniform weights and no NaN.
    """
    lowest = jnp.finfo(jnp.float32).min
    bias = None
    if attn_mask is not None:
        if attn_mask.dtype == jnp.bool_:
            attn_mask = jnp.where(attn_mask, lowest, 0.0)
        bias = attn_mask.astype(jnp.float32)
        bias = bias[None, None] if bias.ndim == 2 else bias[:, None]  # [1 or B, 1, N, K]
    if key_padding_mask is not None:
        padding_bias = jnp.where(key_padding_mask, lowest, 0.0).astype(jnp.float32)[:, None, None]
        bias = padding_bias if bias is None else bias + padding_bias  # [B, 1, N or 1, K]
    return None if bias is None else jnp.maximum(bias, lowest)


class MultiHeadAttention(nnx.Module):
    """Scaled dot-product attention over several heads, with biases in every projection.

    Dimensions: ``B`` batch, ``N`` queries, ``K`` keys, ``D`` model width.

    The query, key and value kernels start as the original's one packed [3D, D] matrix does: Xavier
    uniform over fan-in D and fan-out 3D. This smaller bound matters for convergence.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.dropout = dropout
        self.dtype = dtype
        packed = xavier_uniform(fan_in=dim, fan_out=3 * dim)
        self.query, self.key, self.value = (
            nnx.Linear(dim, dim, kernel_init=packed, dtype=dtype, rngs=rngs) for _ in range(3)
        )
        self.output = nnx.Linear(dim, dim, kernel_init=xavier_uniform(), dtype=dtype, rngs=rngs)

    @classmethod
    def from_config(cls, config: ModelConfig, *, rngs: nnx.Rngs) -> "MultiHeadAttention":
        """The attention that every layer of a model with this configuration uses."""
        return cls(
            config.hidden_dim, config.num_heads, dropout=config.dropout, dtype=jnp.dtype(config.dtype), rngs=rngs
        )

    def __call__(
        self,
        queries: Float[Array, "B N D"],
        keys: Float[Array, "B K D"],
        values: Float[Array, "B K D"],
        *,
        key_padding_mask: Bool[Array, "B K"] | None = None,
        attn_mask: Shaped[Array, "*M N K"] | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B N D"]:
        """Attends from queries [B, N, D] to keys and values [B, K, D]; returns [B, N, D].

        ``key_padding_mask`` and ``attn_mask`` are those of `attention_bias`. The softmax is in float32.
        With ``rngs`` (stream "dropout") the attention probabilities are dropped out.
        """
        weights = self.weights(queries, keys, key_padding_mask=key_padding_mask, attn_mask=attn_mask)
        weights = dropout(weights, self.dropout, rngs).astype(self.dtype)
        attended = jnp.einsum("bhnk,bhkd->bhnd", weights, self._heads(self.value, values)).swapaxes(1, 2)
        return self.output(attended.reshape(*attended.shape[:2], -1))

    def weights(
        self,
        queries: Float[Array, "B N D"],
        keys: Float[Array, "B K D"],
        *,
        key_padding_mask: Bool[Array, "B K"] | None = None,
        attn_mask: Shaped[Array, "*M N K"] | None = None,
    ) -> Float32[Array, "B heads N K"]:
        """How much each query [B, N, D] attends to each key [B, K, D]: [B, heads, N, K] float32, rows of sum 1."""
        q, k = self._heads(self.query, queries), self._heads(self.key, keys)
        scale = 1.0 / math.sqrt(q.shape[-1])
        scores = jnp.einsum("bhnd,bhkd->bhnk", q * scale, k, preferred_element_type=jnp.float32)
        bias = attention_bias(key_padding_mask, attn_mask)
        if bias is not None:
            scores = scores + bias
        return jax.nn.softmax(scores, axis=-1)

    def _heads(self, projection: nnx.Linear, x: jax.Array) -> jax.Array:
        """[B, N, D] projected and shared out over the heads, [B, heads, N, D / heads].

        The heads come before the tokens, as XLA for CPUs is several times slower at products with heads in between.
        """
        return projection(x).reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)
