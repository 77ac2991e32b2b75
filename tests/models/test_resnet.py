"""The backbone's parts against numpy and scipy, its shapes, and the valid region."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.signal import correlate2d

from detr_jax.config import BackboneConfig
from detr_jax.models import ResNet, normalize_images, resnet_config
from detr_jax.models.feature_map import clear_padding, valid_cells
from detr_jax.models.resnet import Conv, FrozenBatchNorm, GroupNorm, Stem

FLOAT32 = jnp.dtype("float32")


def shapes_of(config, height, width):
    """The feature maps of one image with shapes instead of arrays, without computing them."""
    images = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    sizes = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    features = jax.eval_shape(lambda *inputs: ResNet(config, rngs=nnx.Rngs(0))(*inputs), images, sizes)
    return jax.tree.map(lambda x: x.shape, features)


def random_map(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def convolve(x, kernel, stride, dilation):
    """PyTorch's convolution of one image, x [H, W, in] and kernel [k, k, in, out], with scipy and numpy."""
    size = kernel.shape[0]
    spread = np.zeros((dilation * (size - 1) + 1,) * 2 + kernel.shape[2:])
    spread[::dilation, ::dilation] = kernel
    pad = dilation * (size - 1) // 2
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    maps = [
        sum(correlate2d(x[..., i], spread[..., i, o], mode="valid") for i in range(kernel.shape[2]))
        for o in range(kernel.shape[3])
    ]
    return np.stack(maps, axis=-1)[::stride, ::stride]


@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation"), [(1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (7, 2, 1)]
)
@pytest.mark.parametrize(("height", "width"), [(8, 11), (9, 10)])
def test_convolution_pads_strides_and_dilates_as_pytorch(rng, rngs, kernel_size, stride, dilation, height, width):
    conv = Conv(3, 4, kernel_size, stride=stride, dilation=dilation, dtype=FLOAT32, rngs=rngs)
    x = random_map(rng, 2, height, width, 3)
    expected = [convolve(np.asarray(image), np.asarray(conv.kernel[...]), stride, dilation) for image in x]
    np.testing.assert_allclose(conv(x), expected, atol=1e-4)


def test_frozen_batch_norm_follows_its_statistics_and_has_no_parameter(rng, rngs):
    norm = FrozenBatchNorm(5, rngs=rngs)
    values = {name: rng.uniform(0.5, 2, 5).astype(np.float32) for name in ("scale", "bias", "mean", "variance")}
    for name, value in values.items():
        getattr(norm, name)[...] = jnp.asarray(value)
    x = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = (x - values["mean"]) / np.sqrt(values["variance"] + 1e-5) * values["scale"] + values["bias"]
    np.testing.assert_allclose(norm(jnp.asarray(x), None), expected, atol=1e-5)
    assert not jax.tree.leaves(nnx.state(norm, nnx.Param))


@pytest.mark.parametrize("channels", [8, 16, 128, 144], ids=lambda channels: f"{channels}-channels")
@pytest.mark.parametrize("sizes", [None, [(5, 6), (2, 3), (4, 1)]], ids=["all-valid", "valid-region"])
def test_group_norm_counts_the_valid_region_only(rng, rngs, channels, sizes):
    norm = GroupNorm(channels, rngs=rngs)
    scale, bias = rng.uniform(0.5, 2, (2, channels)).astype(np.float32)
    norm.scale[...], norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    x = 3 + 2 * random_map(rng, 3, 5, 6, channels)
    found = norm(x, None if sizes is None else jnp.asarray(sizes))
    groups = {8: 2, 16: 4, 128: 32, 144: 4}[channels]  # at most 32, of at least 4 channels each
    for image, (height, width) in enumerate(sizes or [(5, 6)] * 3):
        valid = np.asarray(x[image, :height, :width], np.float64).reshape(height, width, groups, -1)
        mean, variance = valid.mean(axis=(0, 1, 3), keepdims=True), valid.var(axis=(0, 1, 3), keepdims=True)
        expected = ((valid - mean) / np.sqrt(variance + 1e-5)).reshape(height, width, channels) * scale + bias
        np.testing.assert_allclose(found[image, :height, :width], expected, atol=1e-4)


def test_group_norm_is_exact_for_small_differences_between_large_values(rng, rngs):
    norm = GroupNorm(8, rngs=rngs)
    x = 50 + 0.05 * random_map(rng, 2, 5, 6, 8)
    valid = np.asarray(x, np.float64).reshape(2, 5, 6, 2, 4)
    mean, variance = valid.mean(axis=(1, 2, 4), keepdims=True), valid.var(axis=(1, 2, 4), keepdims=True)
    expected = ((valid - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    np.testing.assert_allclose(norm(x, None), expected, atol=2e-3)


@pytest.mark.parametrize("width", [4, 12, 36, 64])
def test_every_width_that_the_configuration_allows_runs_with_group_norm(width):
    """`check` allows the multiples of 4; among them 36 makes stages of 144 channels, no multiple of 32 groups."""
    features = shapes_of(BackboneConfig(norm="group", width=width, blocks=(1, 1)), 32, 32)
    assert [one.values for one in features] == [(1, 8, 8, 4 * width), (1, 4, 4, 8 * width)]


@pytest.mark.parametrize(("height", "width"), [(21, 18), (24, 21), (32, 16), (1, 2)])
def test_the_stem_convolves_and_takes_the_maximum_of_3x3_as_pytorch(rng, rngs, height, width):
    stem = Stem(BackboneConfig(width=4), dtype=FLOAT32, rngs=rngs)
    x = random_map(rng, 1, height, width, 3)
    found, sizes = stem(x, None)
    convolved = np.maximum(convolve(np.asarray(x[0]), np.asarray(stem.conv.conv.kernel[...]), 2, 1), 0)
    convolved /= np.sqrt(1 + 1e-5)  # the frozen batch norm as it starts
    padded = np.pad(convolved, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    assert found.shape == (1, -(-height // 4), -(-width // 4), 4)
    for y, x in np.ndindex(found.shape[1:3]):
        window = padded[2 * y : 2 * y + 3, 2 * x : 2 * x + 3]
        np.testing.assert_allclose(found[0, y, x], window.max(axis=(0, 1)), atol=1e-4)
    assert sizes is None


@pytest.mark.parametrize(("kind", "stride"), [("imagenet", 4), ("small", 2)])
def test_the_stem_has_its_stride_and_valid_sizes_follow(rng, rngs, kind, stride):
    stem = Stem(BackboneConfig(width=4, stem=kind), dtype=FLOAT32, rngs=rngs)
    found, sizes = stem(random_map(rng, 2, 32, 64, 3), jnp.asarray([[32, 33], [5, 64]]))
    assert found.shape == (2, 32 // stride, 64 // stride, 4)
    np.testing.assert_array_equal(sizes, -(-np.array([[32, 33], [5, 64]]) // stride))


@pytest.mark.parametrize(("height", "width"), [(800, 1333), (480, 640), (65, 33), (31, 97)])
@pytest.mark.parametrize("dilation", [False, True], ids=["stride-32", "dc5"])
def test_features_have_ceil_of_the_size_over_the_stride(height, width, dilation):
    config = resnet_config(50, dilation=dilation)
    features = shapes_of(config, height, width)
    strides = [4, 8, 16, 16 if dilation else 32]
    expected = [(1, -(-height // s), -(-width // s), c) for s, c in zip(strides, (256, 512, 1024, 2048), strict=True)]
    assert [one.values for one in features] == expected
    assert [one.stride for one in features] == list(config.strides) == strides
    assert config.channels == (256, 512, 1024, 2048)
    assert [one.valid_sizes for one in features] == [(1, 2)] * 4


def test_dc5_dilates_the_last_stage_except_its_first_block():
    model = nnx.eval_shape(lambda: ResNet(resnet_config(50, dilation=True), rngs=nnx.Rngs(0)))
    dilations = [[block.convs[1].conv.dilation for block in stage] for stage in model.stages]
    strides = [[block.convs[1].conv.stride for block in stage] for stage in model.stages]
    assert dilations == [[1] * 3, [1] * 4, [1] * 6, [1, 2, 2]]
    assert strides == [[1] * 3, [2, 1, 1, 1], [2, 1, 1, 1, 1, 1], [1] * 3]


def test_a_block_is_its_convolutions_and_a_shortcut(rng, rngs, tiny_backbone):
    """Stride on the 3x3 convolution, ReLU between and at the end, the projection added before the last ReLU."""
    model = ResNet(tiny_backbone(blocks=(1, 1)), rngs=rngs)
    block = model.stages[1][0]
    x = random_map(rng, 1, 9, 12, 32)
    kernels = [np.asarray(one.conv.kernel[...]) for one in (*block.convs, block.shortcut)]
    norm = 1 / np.sqrt(1 + 1e-5)
    y = np.maximum(convolve(np.asarray(x[0]), kernels[0], 1, 1) * norm, 0)
    y = np.maximum(convolve(y, kernels[1], 2, 1) * norm, 0)
    y = convolve(y, kernels[2], 1, 1) * norm + convolve(np.asarray(x[0]), kernels[3], 2, 1) * norm
    found, _ = nnx.jit(block)(x, None)
    np.testing.assert_allclose(found[0], np.maximum(y, 0), atol=1e-3)


def test_valid_sizes_halve_upwards_at_each_stride(rng, rngs, tiny_backbone):
    sizes = rng.integers(1, 129, (4, 2))
    model = nnx.jit(ResNet(tiny_backbone(), rngs=rngs))
    features = model(jnp.zeros((4, 128, 128, 3)), jnp.asarray(sizes))
    assert len(features) == 3
    for level, stride in zip(features, tiny_backbone().strides, strict=True):
        np.testing.assert_array_equal(level.valid_sizes, -(-sizes // stride))
        mask = np.ones(level.values.shape[:3], bool)
        for image, (height, width) in enumerate(np.asarray(level.valid_sizes)):
            mask[image, :height, :width] = False
        np.testing.assert_array_equal(level.padding_mask(), mask)
    assert all(level.padding_mask() is None for level in model(jnp.zeros((4, 128, 128, 3)), None))


def test_images_are_normalised_and_their_padding_is_zero(rng):
    images = rng.integers(0, 256, (2, 6, 7, 3), dtype=np.uint8)
    sizes = np.array([[6, 5], [3, 7]])
    found = np.asarray(normalize_images(jnp.asarray(images), jnp.asarray(sizes)))
    expected = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for image, (height, width) in enumerate(sizes):
        np.testing.assert_allclose(found[image, :height, :width], expected[image, :height, :width], atol=1e-5)
        assert not found[image, height:].any()
        assert not found[image, :, width:].any()
    assert found.dtype == np.float32


def test_clearing_padding_touches_nothing_else_and_removes_not_a_numbers():
    x = jnp.full((1, 3, 4, 2), jnp.nan).at[:, :2, :3].set(7.0)
    cleared = np.asarray(clear_padding(x, jnp.asarray([[2, 3]])))
    assert (cleared[0, :2, :3] == 7).all()
    assert cleared.sum() == 7 * 12
    assert clear_padding(x, None) is x
    np.testing.assert_array_equal(valid_cells(jnp.asarray([[2, 3]]), 3, 4)[0], cleared[0, ..., 0] == 7)
