"""Residual networks that keep padding out of their features (He et al., 2016; torchvision's "v1.5").

Dimensions: ``B`` batch, ``H`` and ``W`` height and width of the feature map, ``C`` channels.

Images of different sizes are padded at the bottom and right to form a batch. If the valid sizes are given, padding is
set to zero before every convolution larger than 1x1, before the pooling, and before the statistics of group norm. The
features of an image therefore do not depend on the amount of padding.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from detr_jax.config import ResNetConfig
from detr_jax.models.convolution import convolve
from detr_jax.models.feature_map import FeatureMap, clear_padding
from detr_jax.models.initializers import Initializer
from detr_jax.models.rematerialization import recomputed

_kaiming: Initializer = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


def _after_stride(sizes: jax.Array | None, stride: int) -> jax.Array | None:
    return None if sizes is None else (sizes + stride - 1) // stride


class Conv(nnx.Module):
    """A convolution without bias. As in the original, it pads every side by (kernel_size - 1) / 2 * dilation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.dilation = dilation
        self.dtype = dtype
        self.kernel = nnx.Param(_kaiming(rngs.params(), (kernel_size, kernel_size, in_channels, out_channels)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [B, H, W, in] to [B, ceil(H / stride), ceil(W / stride), out]."""
        return convolve(x, self.kernel[...].astype(self.dtype), stride=self.stride, dilation=self.dilation)


class FrozenStatistic(nnx.Variable):
    """A value of a frozen batch norm. It is loaded with pretrained weights and never trained."""


class FrozenBatchNorm(nnx.Module):
    """Batch norm with fixed statistics, scale and bias. It is an affine map of each channel."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.scale = FrozenStatistic(jnp.ones(channels))
        self.bias = FrozenStatistic(jnp.zeros(channels))
        self.mean = FrozenStatistic(jnp.zeros(channels))
        self.variance = FrozenStatistic(jnp.ones(channels))

    def __call__(self, x: jax.Array, sizes: jax.Array | None) -> jax.Array:
        """Normalises x [B, H, W, C] in float32. ``sizes`` has no effect."""
        scale = self.scale[...] * lax.rsqrt(self.variance[...] + 1e-5)
        bias = self.bias[...] - self.mean[...] * scale
        return (x.astype(jnp.float32) * scale[None, None, None] + bias[None, None, None]).astype(x.dtype)


class GroupNorm(nnx.Module):
    """Group norm whose statistics are computed over the valid region (Wu and He, 2018).

    By default it has up to 32 groups of at least 4 channels.
    """

    def __init__(self, channels: int, groups: int | None = None, *, rngs: nnx.Rngs):
        self.groups = groups or math.gcd(32, channels // 4)
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array, sizes: jax.Array | None) -> jax.Array:
        """Normalises x [B, H, W, C] in float32. If sizes [B, 2] are given, only valid cells count in the statistics."""
        batch, height, width, channels = x.shape
        values = x.astype(jnp.float32)
        inside = clear_padding(values, sizes)
        cells = float(height * width) if sizes is None else jnp.prod(sizes, axis=1)[:, None].astype(jnp.float32)

        def group_mean(channel_sums: jax.Array) -> jax.Array:
            """The mean of each channel's group, [B, C], from sums over the cells, [B, C]."""
            per_group = channels // self.groups
            total = channel_sums.reshape(batch, self.groups, per_group).sum(axis=2)
            return jnp.repeat(total / (cells * per_group), per_group, axis=1)

        mean = group_mean(inside.sum(axis=(1, 2)))
        # around the mean, because a difference of two squares is lost in rounding if the mean is large
        centered = clear_padding(values - mean[:, None, None], sizes)
        variance = group_mean(jnp.square(centered).sum(axis=(1, 2)))
        # as an affine map of each channel, the norm costs one multiply-add per element
        scale = self.scale[...][None] * lax.rsqrt(variance + 1e-5)
        bias = self.bias[...][None] - mean * scale
        return (values * scale[:, None, None] + bias[:, None, None]).astype(x.dtype)


_NORMS = {"frozen_batch": FrozenBatchNorm, "group": GroupNorm}


class ConvNorm(nnx.Module):
    """A convolution over the valid region, then a norm."""

    def __init__(
        self,
        config: ResNetConfig,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.needs_clear_padding = kernel_size > 1
        self.conv = Conv(
            in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, dtype=dtype, rngs=rngs
        )
        self.norm = _NORMS[config.norm](out_channels, rngs=rngs)

    def __call__(self, x: jax.Array, sizes: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """Maps x [B, H, W, in] with valid sizes [B, 2] to the normalised feature map and its valid sizes."""
        if self.needs_clear_padding:
            x = clear_padding(x, sizes)
        sizes = _after_stride(sizes, self.stride)
        return self.norm(self.conv(x), sizes), sizes


class ResidualBlock(nnx.Module):
    """A residual block of two 3x3 convolutions ("basic") or of 1x1, 3x3 and 1x1 convolutions ("bottleneck").

    In a bottleneck, the 3x3 convolution has the stride.
    """

    def __init__(
        self,
        config: ResNetConfig,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        dilation: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def conv(in_channels: int, out_channels: int, size: int, **placement: int) -> ConvNorm:
            return ConvNorm(config, in_channels, out_channels, size, **placement, dtype=dtype, rngs=rngs)

        out_channels = channels * config.expansion
        if config.block == "bottleneck":
            self.convs = nnx.List(
                [
                    conv(in_channels, channels, 1),
                    conv(channels, channels, 3, stride=stride, dilation=dilation),
                    conv(channels, out_channels, 1),
                ]
            )
        else:
            self.convs = nnx.List(
                [
                    conv(in_channels, channels, 3, stride=stride, dilation=dilation),
                    conv(channels, out_channels, 3),
                ]
            )
        needs_projection = stride > 1 or in_channels != out_channels
        self.shortcut = conv(in_channels, out_channels, 1, stride=stride) if needs_projection else None

    def __call__(self, x: jax.Array, sizes: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """Maps x [B, H, W, in] with valid sizes [B, 2] to the block's output and its valid sizes."""
        shortcut = x if self.shortcut is None else self.shortcut(x, sizes)[0]
        for i, conv in enumerate(self.convs):
            x, sizes = conv(x if i == 0 else jax.nn.relu(x), sizes)
        return jax.nn.relu(x + shortcut), sizes


class Stem(nnx.Module):
    """The first layers: a 7x7 convolution and a 3x3 max-pool ("imagenet"), or a 3x3 convolution ("small").

    Each has the stride 2.
    """

    def __init__(self, config: ResNetConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.pool = config.stem == "imagenet"
        kernel_size = 7 if self.pool else 3
        self.conv = ConvNorm(config, 3, config.width, kernel_size, stride=2, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, sizes: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """Maps images [B, H, W, 3] with valid sizes [B, 2] to the stem's output and its valid sizes."""
        x, sizes = self.conv(x, sizes)
        x = jax.nn.relu(x)
        if not self.pool:
            return x, sizes
        return _max_pool(clear_padding(x, sizes)), _after_stride(sizes, 2)


def _max_pool(x: jax.Array) -> jax.Array:
    """3x3 max-pooling with stride 2 of x [B, H, W, C]. x must not be negative, because it is padded with zeros.

    The result is computed as the maximum of nine slices. On CPUs, the window reductions of XLA take twice as long.
    """
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, height % 2), (1, width % 2), (0, 0)))
    cells = [padded[:, row : row + height : 2, column : column + width : 2] for row in range(3) for column in range(3)]
    return functools.reduce(jnp.maximum, cells)


class ResNet(nnx.Module):
    """A residual network without its classifier, made of a stem and up to four stages of blocks.

    With ``config.dilation`` (DC5), the last stage keeps the resolution. Its 3x3 convolutions are dilated by 2, except
    in the first block. With ``remat``, the backward pass computes every block again.
    """

    def __init__(
        self,
        config: ResNetConfig,
        *,
        dtype: jax.typing.DTypeLike = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        dtype = self.dtype = jnp.dtype(dtype)
        self.strides = config.strides
        self.remat = remat
        self.stem = Stem(config, dtype=dtype, rngs=rngs)
        self.stages: nnx.List[nnx.List[ResidualBlock]] = nnx.List([])
        in_channels = config.width
        for stage, blocks in enumerate(config.blocks):
            dilated = config.dilation and stage == len(config.blocks) - 1
            channels = config.width * 2**stage
            layers: nnx.List[ResidualBlock] = nnx.List([])
            for block in range(blocks):
                layers.append(
                    ResidualBlock(
                        config,
                        in_channels,
                        channels,
                        stride=2 if block == 0 and stage > 0 and not dilated else 1,
                        dilation=2 if dilated and block > 0 else 1,
                        dtype=dtype,
                        rngs=rngs,
                    )
                )
                in_channels = channels * config.expansion
            self.stages.append(layers)

    def __call__(self, images: jax.Array, sizes: jax.Array | None = None) -> tuple[FeatureMap, ...]:
        """Computes the features of every stage.

        Args:
          images: [B, H, W, 3] float32, normalised.
          sizes: [B, 2] int, the valid size of each image, (height, width) in pixels. It keeps padding out of the
            features. If it is None, padding is treated as part of the image, as in the original.

        Returns:
          The `FeatureMap` of each stage (C2 to C5 of a full network).
        """
        x, sizes = self.stem(images.astype(self.dtype), sizes)
        features = []
        for stage, stride in zip(self.stages, self.strides, strict=True):
            for block in stage:
                x, sizes = (recomputed(block) if self.remat else block)(x, sizes)
            features.append(FeatureMap(x, sizes, stride))
        return tuple(features)
