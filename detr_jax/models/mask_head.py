"""The mask head: a mask for each query, from attention maps and the backbone's levels (DETR, section 3.4, figure 8).

It fits around any detector that has one map of tokens. Padding is kept out at every level, so the mask of an image does
not depend on how far the image was padded.

Dimensions: ``B`` batch, ``Q`` object queries, ``K`` chosen queries, ``D`` model width, ``A`` heads, ``h, w`` cells of
the coarsest level.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float32, Int

from detr_jax.config import MaskHeadConfig, TransformerConfig
from detr_jax.models.blocks import map_blocks
from detr_jax.models.convolution import convolve
from detr_jax.models.feature_map import FeatureMap, clear_padding
from detr_jax.models.initializers import uniform, xavier_uniform
from detr_jax.models.resnet import GroupNorm
from detr_jax.models.upsampling import upsampled_conv3x3
from detr_jax.structures import Array, structure

_GROUPS = 8  # of the group norms, if the channels are a multiple of it


@structure
class MaskFeatures:
    """What masks are computed from."""

    queries: Float32[Array, "B Q D"]
    """[B, Q, D] float32, the decoder's last output."""
    memory: Float32[Array, "B h w D"]
    """[B, h, w, D] float32, the encoder's output."""
    padding_mask: Bool[Array, "B h w"]
    """[B, h, w] bool, True at padding."""
    projected: Float32[Array, "B h w D"]
    """[B, h, w, D] float32, the encoder's input."""
    levels: tuple[FeatureMap, ...]
    """The levels of the backbone that the head reads, from fine to coarse; `projected` comes from the last one."""


def create_mask_head(config: TransformerConfig, *, rngs: nnx.Rngs) -> "MaskHead | None":
    """The mask head of a detector with one map of tokens. None if its configuration has none."""
    if config.masks is None:
        return None
    return MaskHead(
        config.masks,
        dim=config.hidden_dim,
        num_heads=config.num_heads,
        channels=tuple(config.backbone.channels[-1 - config.num_adapters : -1]),
        padding_is_masked=config.mask_padding,
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
    )


class MaskAttention(nnx.Module):
    """Where each query looks: attention weights of several heads, without values."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.query, self.key = (nnx.Linear(dim, dim, kernel_init=xavier_uniform(), rngs=rngs) for _ in range(2))

    def keys(self, memory: Float32[Array, "B h w D"]) -> Float32[Array, "B A cells E"]:
        """The keys of all heads, which all queries share."""
        return self._heads(self.key(memory.reshape(memory.shape[0], -1, memory.shape[-1])))

    def __call__(
        self, queries: Float32[Array, "B K D"], keys: Float32[Array, "B A cells E"], padding_mask: Bool[Array, "B h w"]
    ) -> Float32[Array, "B K h w A"]:
        """The attention weights. Those of one query sum to 1 over all heads and cells, and are 0 at padding."""
        batch, number = queries.shape[:2]
        heads = self._heads(self.query(queries)) / math.sqrt(keys.shape[-1])
        scores = jnp.einsum("bakd,bacd->bkca", heads, keys)
        masked = padding_mask.reshape(batch, 1, -1, 1)
        scores = jnp.where(masked, jnp.finfo(jnp.float32).min, scores)
        weights = jax.nn.softmax(scores, axis=(2, 3))
        return weights.reshape(batch, number, *padding_mask.shape[1:], self.num_heads)

    def _heads(self, x: jax.Array) -> jax.Array:
        """[B, n, D] to [B, A, n, D / A]."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)


class _Layer(nnx.Module):
    """Kernel and bias of a convolution, and the group norm after it, if it has one."""

    def __init__(self, size: int, in_channels: int, out_channels: int, *, norm: bool, rngs: nnx.Rngs):
        bound = math.sqrt(3.0 / (size * size * in_channels))  # PyTorch's Kaiming uniform with a = 1
        self.kernel = nnx.Param(uniform(bound)(rngs.params(), (size, size, in_channels, out_channels)))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.norm = GroupNorm(out_channels, math.gcd(_GROUPS, out_channels), rngs=rngs) if norm else None


def _to_one_channel(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution [N, h, w, C] to [N, h, w] float32, padded by one zero on every side.

    It is one product for all nine places of the kernel, whose results are moved and added. A convolution with one
    output has a slow backward pass on CPUs.
    """
    height, width, channels = x.shape[1:]
    products = jnp.matmul(x.reshape(-1, channels), kernel.reshape(9, channels).T, preferred_element_type=jnp.float32)
    padded = jnp.pad(products.reshape(*x.shape[:3], 9), ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = itertools.product(range(3), range(3))
    moved = [padded[:, a : a + height, b : b + width, 3 * a + b] for a, b in places]
    return functools.reduce(jnp.add, moved)


class MaskHead(nnx.Module):
    """Mask logits of queries, at the resolution of the finest level."""

    def __init__(
        self,
        config: MaskHeadConfig,
        *,
        dim: int,
        num_heads: int,
        channels: tuple[int, ...],
        padding_is_masked: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Build the head with initial values.

        Args:
          config: the size of blocks.
          dim: D.
          num_heads: A.
          channels: of the finer levels of the backbone that the head reads, from fine to coarse.
          padding_is_masked: keep padding out of every convolution and norm; False is the original on a padded batch.
          dtype: the type that convolutions are computed in.
        """
        self.block_size = config.block_size
        self.dim = dim
        self.dtype = dtype
        self.padding_is_masked = padding_is_masked
        self.attention = MaskAttention(dim, num_heads, rngs=rngs)
        finer = channels[::-1]
        widths = [dim + num_heads, *(dim // 2 ** (step + 1) for step in range(len(finer) + 1))]
        pairs = [(widths[0], widths[0]), *itertools.pairwise(widths)]
        self.layers = nnx.List([_Layer(3, *pair, norm=True, rngs=rngs) for pair in pairs])
        self.adapters = nnx.List(
            [_Layer(1, *pair, norm=False, rngs=rngs) for pair in zip(finer, widths[1:], strict=False)]
        )
        self.output = _Layer(3, widths[-1], 1, norm=False, rngs=rngs)

    def used_levels(self, levels: tuple[FeatureMap, ...]) -> tuple[FeatureMap, ...]:
        """The levels of a backbone that the head reads."""
        return levels[-1 - len(self.adapters) :]

    def __call__(self, features: MaskFeatures, queries: Int[Array, "B K"]) -> Float32[Array, "B K rows columns"]:
        """The mask logits [B, K, rows, columns] float32 of the queries with these indices [B, K].

        A cell is one of the finest level. Values at padding have no meaning.
        """
        return self.map(features, queries, (), lambda logits, _: logits)

    def map(
        self,
        features: MaskFeatures,
        queries: Int[Array, "B K"],
        arrays: Any,
        function: Any,
        *,
        count: Int[Array, " B"] | None = None,
        recompute: bool = False,
    ) -> Any:
        """Apply a function to the mask logits of queries, a block at a time.

        Args:
          features: of the detector.
          queries: [B, K] int, indices.
          arrays: a pytree of arrays [B, K, ...] that the function reads too.
          function: maps logits [B, k, rows, columns] and the arrays of a block to a pytree of arrays [B, k, ...].
          count: as for `map_blocks`.
          recompute: as for `map_blocks`.

        Returns:
          A pytree of arrays [B, K, ...].
        """
        keys = self.attention.keys(features.memory)
        shared = self._of_images(features)
        chosen = jnp.take_along_axis(features.queries, queries[..., None], axis=1)

        def of_block(part: tuple[jax.Array, Any]) -> Any:
            maps = self.attention(part[0], keys, features.padding_mask)
            return function(self._logits(maps, shared, features), part[1])

        return map_blocks(of_block, (chosen, arrays), self.block_size, count=count, recompute=recompute)

    def _valid_sizes(self, level: FeatureMap) -> jax.Array | None:
        return level.valid_sizes if self.padding_is_masked else None

    def _of_images(self, features: MaskFeatures) -> list[jax.Array]:
        """The convolutions of what all queries of an image share, one for each layer that reads such a part.

        A convolution is linear, so the part that differs by query can be convolved apart and added.
        """
        coarse = clear_padding(features.projected.astype(self.dtype), self._valid_sizes(features.levels[-1]))
        found = [convolve(coarse, self._kernel(self.layers[0])[:, :, : self.dim])]
        for adapter, layer, level in zip(self.adapters, self.layers[2:], features.levels[-2::-1], strict=True):
            adapted = convolve(level.values.astype(self.dtype), self._kernel(adapter)) + self._bias(adapter)
            found.append(convolve(clear_padding(adapted, self._valid_sizes(level)), self._kernel(layer)))
        return found

    def _logits(self, maps: jax.Array, shared: list[jax.Array], features: MaskFeatures) -> jax.Array:
        """The mask logits of attention maps [B, k, h, w, A]."""
        batch, number = maps.shape[:2]

        def of_queries(sizes: jax.Array | None) -> jax.Array | None:
            return None if sizes is None else jnp.repeat(sizes, number, axis=0)

        def added(x: jax.Array, of_images: jax.Array) -> jax.Array:
            return (x.reshape(batch, number, *x.shape[1:]) + of_images[:, None]).reshape(x.shape)

        sizes = of_queries(self._valid_sizes(features.levels[-1]))
        x = maps.reshape(batch * number, *maps.shape[2:]).astype(self.dtype)
        first, second, *finer = self.layers
        x = self._normed(added(convolve(x, self._kernel(first)[:, :, self.dim :]), shared[0]), first, sizes)
        x = self._normed(convolve(clear_padding(x, sizes), self._kernel(second)), second, sizes)
        for layer, level, coarser, of_images in zip(
            finer, features.levels[-2::-1], features.levels[::-1], shared[1:], strict=False
        ):
            x = clear_padding(x, sizes)
            sizes = of_queries(self._valid_sizes(level))
            if level.stride == coarser.stride:
                x = convolve(x, self._kernel(layer))
            else:
                x = upsampled_conv3x3(x, self._kernel(layer), level.values.shape[1:3], sizes)
            x = self._normed(added(x, of_images), layer, sizes)
        logits = _to_one_channel(clear_padding(x, sizes), self._kernel(self.output)) + self.output.bias[0]
        return logits.reshape(batch, number, *logits.shape[1:3])

    def _normed(self, x: jax.Array, layer: _Layer, sizes: jax.Array | None) -> jax.Array:
        assert layer.norm is not None
        return jax.nn.relu(layer.norm(x + self._bias(layer), sizes))

    def _kernel(self, layer: _Layer) -> jax.Array:
        return layer.kernel[...].astype(self.dtype)

    def _bias(self, layer: _Layer) -> jax.Array:
        return layer.bias[...][None, None, None].astype(self.dtype)
