"""Multi-head attention with padding and attention masks (DETR, appendix A.1)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Float32, Shaped

from detr_jax.config import TransformerConfig
from detr_jax.models.initializers import xavier_uniform
from detr_jax.structures import Array


def dropout(x: jax.Array, rate: float, rngs: nnx.Rngs | None) -> jax.Array:
    """Inverted dropout of x [..., N]. If ``rngs`` is None (inference), x is returned unchanged.

    Random numbers take more time than the softmax before them. One random word of 32 bits is therefore used for four
    elements. An element is kept if its byte is below the threshold ``256 * (1 - rate)``. Each row rounds the threshold
    up or down at random, so that the expected rate is exact.
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
    """Both masks as one float32 bias that is added to the scores before the softmax.

    Args:
      key_padding_mask: [B, K] bool, True for keys that are padding.
      attn_mask: [N, K] or [B, N, K]. If it is bool, True means that the query may not attend to the key. If it is
        float, it is added to the scores.

    Returns:
      A bias that broadcasts to [B, heads, N, K], or None without masks. All its values are finite, so a query
      whose keys are all masked gets uniform weights instead of NaN.
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

    The original packs the query, key and value kernels into one [3D, D] matrix and initialises it with Xavier uniform
    (fan-in D, fan-out 3D). The three kernels here are initialised with the same bound. It is smaller than the bound of
    separate matrices, and this matters for convergence.
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
    def from_config(cls, config: TransformerConfig, *, rngs: nnx.Rngs) -> "MultiHeadAttention":
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
        """Attends from queries [B, N, D] to keys and values [B, K, D], and returns [B, N, D].

        `attention_bias` describes ``key_padding_mask`` and ``attn_mask``. The softmax is computed in float32. If
        ``rngs`` is given (stream "dropout"), dropout is applied to the attention probabilities.
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
        """The attention weights of queries [B, N, D] on keys [B, K, D].

        Returns:
          [B, heads, N, K] float32. Each row has the sum 1.
        """
        q, k = self._heads(self.query, queries), self._heads(self.key, keys)
        scale = 1.0 / math.sqrt(q.shape[-1])
        scores = jnp.einsum("bhnd,bhkd->bhnk", q * scale, k, preferred_element_type=jnp.float32)
        bias = attention_bias(key_padding_mask, attn_mask)
        if bias is not None:
            scores = scores + bias
        return jax.nn.softmax(scores, axis=-1)

    def _heads(self, projection: nnx.Linear, x: jax.Array) -> jax.Array:
        """Projects x [B, N, D] and splits it into heads, [B, heads, N, D / heads].

        The axis of heads comes before the axis of tokens. In the other order, XLA for CPUs computes the products
        several times slower.
        """
        return projection(x).reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)
