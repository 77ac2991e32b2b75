"""The mask head: padding, blocks, levels of several backbones, and the attention of queries."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.config import Config, ConfigError, MaskHeadConfig, Norm, Precision, ResNetConfig, Stem, check
from detr_jax.models import (
    DETR,
    deformable_detr_resnet50,
    deformable_detr_resnet50_single_scale,
    detr_resnet50,
    detr_resnet50_dc5,
    resnet_config,
)
from detr_jax.models.blocks import map_blocks

SMALL = {"num_classes": 5, "num_queries": 6, "encoder_layers": 1, "decoder_layers": 1, "feedforward_dim": 64}
BACKBONES = {
    "r18": resnet_config(18, norm=Norm.GROUP),
    "r50": resnet_config(50),
    "r50-dc5": resnet_config(50, dilation=True),
    "small": ResNetConfig(block="basic", blocks=(1, 1, 1), width=32, stem=Stem.SMALL, norm=Norm.GROUP),
    "two-levels": ResNetConfig(blocks=(1, 1), width=32, norm=Norm.GROUP),
}


def model_of(name, rngs, **fields):
    defaults = {**SMALL, "hidden_dim": 128, "num_heads": 8, "masks": MaskHeadConfig(block_size=4)}
    return DETR(detr_resnet50(backbone=BACKBONES[name], **{**defaults, **fields}), rngs=rngs)


@nnx.jit
def all_masks(model, images, sizes):
    outputs = model(images, sizes)
    queries = jnp.broadcast_to(jnp.arange(outputs.logits.shape[2])[None], outputs.logits.shape[1:3])
    return model.mask_logits(outputs.mask_features, queries)


@pytest.mark.parametrize("name", BACKBONES)
def test_padding_never_changes_a_mask(name, rng, rngs):
    model = model_of(name, rngs)
    sizes = ((93, 130), (128, 71))
    images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in sizes]
    stride = model_stride(name)
    pairs = zip(images, sizes, strict=True)
    alone = [np.asarray(all_masks(model, image[None], jnp.array([size])))[0] for image, size in pairs]
    for bucket in ((128, 160), (192, 224)):
        batch = np.zeros((2, *bucket, 3), np.float32)
        for place, image in zip(batch, images, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
        together = np.asarray(all_masks(model, jnp.asarray(batch), jnp.array(sizes)))
        assert together.shape == (2, 6, bucket[0] // stride, bucket[1] // stride)
        for found, wanted, (height, width) in zip(together, alone, sizes, strict=True):
            rows, columns = -(-height // stride), -(-width // stride)
            assert wanted.shape == (6, rows, columns)
            np.testing.assert_allclose(found[:, :rows, :columns], wanted, atol=1e-4 * max(1, wanted.std()))


def test_padding_never_changes_a_mask_of_a_deformable_detr(rng, rngs):
    fields = {**SMALL, "hidden_dim": 128, "num_heads": 8, "masks": MaskHeadConfig(block_size=4)}
    config = deformable_detr_resnet50_single_scale(backbone=BACKBONES["r18"], **fields)
    model, size = config.build(rngs=rngs), (93, 130)
    image = rng.normal(size=(*size, 3)).astype(np.float32)
    alone = np.asarray(all_masks(model, image[None], jnp.array([size])))
    assert alone.shape == (1, 6, 24, 33)
    padded = np.zeros((1, 128, 192, 3), np.float32)
    padded[:, :93, :130] = image
    found = np.asarray(all_masks(model, jnp.asarray(padded), jnp.array([size])))
    np.testing.assert_allclose(found[:, :, :24, :33], alone, atol=1e-4 * max(1, alone.std()))


def model_stride(name):
    return detr_resnet50(backbone=BACKBONES[name], masks=MaskHeadConfig()).mask_stride


def test_mask_strides():
    assert {name: model_stride(name) for name in BACKBONES} == {
        "r18": 4,
        "r50": 4,
        "r50-dc5": 4,
        "small": 2,
        "two-levels": 4,
    }
    assert detr_resnet50().mask_stride is None


@pytest.mark.parametrize("block_size", [1, 4, 5, 64])
def test_blocks_give_the_same_masks(block_size, rng, rngs):
    model = model_of("small", rngs)
    images, sizes = jnp.asarray(rng.normal(size=(2, 64, 96, 3)), jnp.float32), jnp.array([(64, 96), (50, 70)])
    expected = all_masks(model, images, sizes)
    model.mask_head.block_size = block_size
    np.testing.assert_allclose(all_masks(model, images, sizes), expected, atol=1e-5)


@pytest.mark.parametrize("items", [1, 3, 4, 7, 12])
@pytest.mark.parametrize("recompute", [False, True])
def test_map_blocks_computes_what_the_function_does(items, recompute, rng):
    x, y = (jnp.asarray(rng.normal(size=(2, items, 5)), jnp.float32) for _ in range(2))

    def function(arrays):
        return {"sum": (arrays[0] * arrays[1]).sum(axis=-1), "exp": jnp.exp(arrays[0])}

    found = jax.jit(lambda x, y: map_blocks(function, (x, y), 4, recompute=recompute))(x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, function((x, y)))
    gradient = jax.grad(lambda x: map_blocks(function, (x, y), 4, recompute=recompute)["sum"].sum())(x)
    np.testing.assert_allclose(gradient, y, rtol=1e-6)


def test_blocks_without_an_item_that_matters_are_not_computed(rng):
    x = jnp.asarray(rng.normal(size=(2, 12, 3)), jnp.float32)
    calls = []

    def function(part):
        jax.debug.callback(lambda: calls.append(1))
        return part * 2.0

    found = map_blocks(function, x, 4, count=jnp.array([2, 5]))
    jax.effects_barrier()
    assert len(calls) == 2
    np.testing.assert_allclose(found[:, :8], 2 * x[:, :8])
    assert not found[:, 8:].any()


def test_the_attention_of_a_query_is_a_distribution_over_heads_and_valid_cells(rng, rngs):
    attention = model_of("small", rngs).mask_head.attention
    memory, queries = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 5, 7, 128), (2, 3, 128)))
    padding = jnp.arange(7)[None, None, :] >= jnp.array([7, 4])[:, None, None]
    padding = jnp.broadcast_to(padding, (2, 5, 7))
    maps = np.asarray(attention(queries, attention.keys(memory), padding))
    assert maps.shape == (2, 3, 5, 7, 8)
    np.testing.assert_allclose(maps.sum(axis=(2, 3, 4)), 1, rtol=1e-5)
    assert not maps[1, :, :, 4:].any()


def test_bfloat16_and_any_batch(rng, rngs):
    model = model_of("r50", rngs, dtype=Precision.BFLOAT16)
    graph, state = nnx.split(model)

    def masks(images, sizes):
        module = nnx.merge(graph, state)
        outputs = module(images, sizes)
        queries = jnp.broadcast_to(jnp.arange(6)[None], outputs.logits.shape[1:3])
        return module.mask_logits(outputs.mask_features, queries)

    (batch,) = jax.export.symbolic_shape("batch")
    shapes = jax.ShapeDtypeStruct((batch, 96, 128, 3), jnp.float32), jax.ShapeDtypeStruct((batch, 2), jnp.int32)
    exported = jax.export.export(jax.jit(masks))(*shapes)
    images, sizes = jnp.asarray(rng.normal(size=(2, 96, 128, 3)), jnp.float32), jnp.array([(96, 128), (90, 101)])
    found = exported.call(images, sizes.astype(jnp.int32))
    assert found.dtype == jnp.float32
    assert np.isfinite(found).all()


def test_the_initial_values_are_the_original_s(rngs):
    head = model_of("r50", rngs, hidden_dim=256).mask_head
    for layer in (*head.layers, *head.adapters, head.output):
        size, _, fan_in, _ = layer.kernel[...].shape
        bound = np.sqrt(3 / (size * size * fan_in))
        largest = np.abs(layer.kernel[...]).max()
        assert 0.9 * bound < largest <= bound
        assert not np.any(layer.bias[...])
    assert [layer.kernel[...].shape[2:] for layer in head.layers] == [
        (264, 264),
        (264, 128),
        (128, 64),
        (64, 32),
        (32, 16),
    ]
    assert 0.1 < np.abs(head.attention.query.kernel[...]).max() <= 0.1083


def test_a_detector_without_a_head_says_so(rngs):
    config = detr_resnet50(backbone=BACKBONES["small"], **SMALL)
    with pytest.raises(ValueError, match="predicts no masks"):
        DETR(config, rngs=rngs).required_mask_head  # noqa: B018


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            detr_resnet50(hidden_dim=40, num_heads=4, masks=MaskHeadConfig()),
            "must be a multiple of 16 with model.masks",
        ),
        (detr_resnet50(masks=MaskHeadConfig(block_size=0)), "block_size"),
        (deformable_detr_resnet50(masks=MaskHeadConfig()), "one feature map, and this one has 4"),
    ],
)
def test_configurations_that_cannot_be_built(model, sentence):
    config = Config(model=model)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, root="data"))
    with pytest.raises(ConfigError, match=sentence):
        check(config)


def test_dc5_masks_keep_stride_4():
    assert detr_resnet50_dc5(masks=MaskHeadConfig()).mask_stride == 4
