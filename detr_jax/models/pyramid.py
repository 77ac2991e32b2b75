"""The feature pyramid of Deformable DETR, and its cells as tokens (Zhu et al., 2021, section 4.1, appendix A.2)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float32, Int

from detr_jax.config import DeformableTransformerConfig
from detr_jax.models.convolution import convolve
from detr_jax.models.feature_map import FeatureMap, clear_padding, valid_cells
from detr_jax.models.initializers import uniform
from detr_jax.models.positions import sine_position_embedding
from detr_jax.models.resnet import GroupNorm
from detr_jax.structures import Array, structure


@structure
class Tokens:
    """The cells of several feature maps, one after another, from fine to coarse and row by row.

    Dimensions: ``B`` batch, ``S`` tokens of all levels, ``M`` levels, ``D`` model width.
    """

    values: Float32[Array, "B S D"]
    """[B, S, D] float32."""
    position: Float32[Array, "B S D"]
    """[B, S, D] float32, position and level."""
    padding_mask: Bool[Array, "B S"]
    """[B, S] bool, True at padding."""
    centers: Float32[Array, "B S 2"]
    """[B, S, 2] float32, centre (x, y) of each cell in 0..1 of the unpadded image."""
    valid_ratios: Float32[Array, "B M 2"]
    """[B, M, 2] float32, the part (x, y) of each level that is not padding, in 0..1."""
    shapes: tuple[tuple[int, int], ...] = dataclasses.field(metadata={"static": True})
    """(height, width) of each level in cells."""


class PyramidLevel(nnx.Module):
    """A convolution with bias and a group norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.stride = 1 if kernel_size == 1 else 2
        self.dtype = dtype
        bound = math.sqrt(6.0 / (kernel_size**2 * (in_channels + out_channels)))
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(uniform(bound)(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(out_channels))
        self.norm = GroupNorm(out_channels, math.gcd(32, out_channels), rngs=rngs)

    def __call__(self, features: FeatureMap) -> FeatureMap:
        """Maps features [B, h, w, in] to [B, ceil(h / stride), ceil(w / stride), out], float32."""
        x, sizes = features.values.astype(self.dtype), features.valid_sizes
        if self.stride > 1:
            x = clear_padding(x, sizes)
            sizes = None if sizes is None else (sizes + 1) // 2
        x = convolve(x, self.kernel[...].astype(self.dtype), stride=self.stride).astype(jnp.float32)
        return FeatureMap(self.norm(x + self.bias[...][None, None, None], sizes), sizes, features.stride * self.stride)


class FeaturePyramid(nnx.Module):
    """Brings the levels of a backbone to one width, and adds coarser levels."""

    def __init__(self, config: DeformableTransformerConfig, *, rngs: nnx.Rngs):
        def level(in_channels: int, kernel_size: int) -> PyramidLevel:
            return PyramidLevel(in_channels, config.hidden_dim, kernel_size, dtype=jnp.dtype(config.dtype), rngs=rngs)

        self.dim = config.hidden_dim
        self.temperature, self.offset = config.position_temperature, config.position_offset
        channels = config.backbone.channels[-config.backbone_levels :]
        self.projections = nnx.List([level(number, 1) for number in channels])
        inputs = [channels[-1], *[config.hidden_dim] * config.extra_levels][: config.extra_levels]
        self.extra = nnx.List([level(number, 3) for number in inputs])
        shape = (config.num_levels, config.hidden_dim)
        self.level_embedding = nnx.Param(jax.random.normal(rngs.params(), shape))

    def __call__(self, features: tuple[FeatureMap, ...], sizes: Int[Array, "B 2"], bucket: tuple[int, int]) -> Tokens:
        """The tokens of all levels.

        Args:
          features: the levels of the backbone, from fine to coarse. The coarsest ones are used.
          sizes: [B, 2] int, valid (height, width) of each image in pixels.
          bucket: (height, width) of the padded batch in pixels.
        """
        used = features[-len(self.projections) :]
        levels = [projection(level) for projection, level in zip(self.projections, used, strict=True)]
        last = used[-1]  # the first extra level reads the backbone's own features
        for extra in self.extra:
            last = extra(last)
            levels.append(last)
        return self._tokens(levels, sizes, bucket)

    def _tokens(self, levels: list[FeatureMap], sizes: Int[Array, "B 2"], bucket: tuple[int, int]) -> Tokens:
        values, positions, masks, centers, ratios = [], [], [], [], []
        for level, embedding in zip(levels, self.level_embedding[...], strict=True):
            cells = level.values.shape[1:3]
            valid = level.valid_sizes
            if valid is None:
                valid = sampled_sizes(sizes, bucket, cells)
            mask = ~valid_cells(valid, *cells)
            position = sine_position_embedding(mask, self.dim, self.temperature, self.offset)
            position = position + embedding[None, None, None]
            values.append(_flat(level.values))
            positions.append(_flat(position))
            masks.append(_flat(mask))
            centers.append(_cell_centers(valid, cells))
            ratios.append(valid[:, ::-1].astype(jnp.float32) / jnp.asarray(cells[::-1], jnp.float32)[None])
        return Tokens(
            values=jnp.concatenate(values, axis=1),
            position=jnp.concatenate(positions, axis=1),
            padding_mask=jnp.concatenate(masks, axis=1),
            centers=jnp.concatenate(centers, axis=1),
            valid_ratios=jnp.stack(ratios, axis=1),
            shapes=tuple(level.values.shape[1:3] for level in levels),
        )


def sampled_sizes(sizes: Int[Array, "B 2"], bucket: tuple[int, int], cells: tuple[int, int]) -> Int[Array, "B 2"]:
    """The valid sizes [B, 2] in cells of a level as the original samples them from the mask in pixels.

    Row ``i`` of ``n`` counts if row ``floor(i * height / n)`` of the bucket is valid (asymmetric nearest sampling).
    """
    sampled = (jnp.arange(n) * pixels // n for n, pixels in zip(cells, bucket, strict=True))
    counts = [(place[None] < sizes[:, axis, None]).sum(axis=1) for axis, place in enumerate(sampled)]
    return jnp.stack(counts, axis=1)


def _cell_centers(valid_sizes: Array, cells: tuple[int, int]) -> jax.Array:
    """[B, h * w, 2] float32, centres (x, y) of the cells in 0..1 of the unpadded image."""
    y, x = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) + 0.5 for n in cells), indexing="ij")
    grid = jnp.stack([x, y], axis=-1).reshape(1, -1, 2)
    return grid / valid_sizes[:, None, ::-1].astype(jnp.float32)


def _flat(x: jax.Array) -> jax.Array:
    """[B, h, w, ...] to [B, h * w, ...]."""
    return x.reshape(x.shape[0], -1, *x.shape[3:])
