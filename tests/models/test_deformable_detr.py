"""Deformable DETR: sizes, padding, initial values and proposals."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.config import DeformableDETRConfig
from detr_jax.models import abstract_model

VARIANTS = {
    "single_scale": {"backbone_levels": 1, "extra_levels": 0},
    "multi_scale": {},
    "refine": {"refine_boxes": True},
    "two_stage": {"refine_boxes": True, "two_stage": True},
}


@pytest.mark.parametrize(
    ("variant", "number"),
    [("single_scale", 34_066_593), ("multi_scale", 40_069_665), ("refine", 40_849_660), ("two_stage", 41_181_529)],
)
def test_the_published_models_have_as_many_parameters(variant, number):
    _, abstract = abstract_model(DeformableDETRConfig(**VARIANTS[variant]))
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    frozen_norm = ("norm", "backbone")
    sizes = [
        math.prod(leaf.shape)
        for path, leaf in leaves
        if not {part.key for part in path if isinstance(part.key, str)} >= set(frozen_norm)
    ]
    assert sum(sizes) == number


@pytest.fixture
def small(tiny_backbone):
    """A factory of detectors with 128 channels and a backbone of three levels; keywords override fields."""

    def config(**fields):
        defaults = {
            "backbone": tiny_backbone(blocks=(1, 1, 1), width=16),
            "num_classes": 5,
            "num_queries": 20,
            "hidden_dim": 128,
            "feedforward_dim": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "backbone_levels": 2,
        }
        return DeformableDETRConfig(**defaults | fields)

    return config


def spread(model, rng):
    """Gives every parameter random values, so that offsets, heads and references do something."""
    graph, state = nnx.split(model)

    def draw(path, leaf):
        if "variance" in str(path):
            return leaf
        scale = 0.3 / math.sqrt(leaf.shape[-1]) if leaf.ndim > 1 else 0.1
        return leaf + jnp.asarray(rng.normal(size=leaf.shape) * scale, leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, nnx.as_pure(state)))


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_never_changes_an_answer(small, rng, rngs, variant):
    fields = VARIANTS[variant] | ({} if variant == "single_scale" else {"backbone_levels": 2})
    config = small(**fields)
    model = spread(config.build(rngs=rngs), rng)
    sizes = np.array([[90, 70], [128, 61]], np.int32)
    images = [rng.normal(size=(1, *size, 3)).astype(np.float32) for size in sizes]

    @jax.jit
    def run(images, sizes):
        outputs = model(images, sizes)
        return outputs.logits, outputs.boxes

    def answers(bucket):
        batch = np.zeros((2, *bucket, 3), np.float32)
        for row, image, size in zip(batch, images, sizes, strict=True):
            row[: size[0], : size[1]] = image[0]
        return run(batch, sizes)

    logits, boxes = answers((128, 96))
    for bucket in ((160, 96), (128, 192), (192, 192)):
        padded_logits, padded_boxes = answers(bucket)
        np.testing.assert_allclose(padded_logits, logits, atol=1e-4)
        np.testing.assert_allclose(padded_boxes, boxes, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bucket_smaller_than_the_queries_has_finite_predictions_and_gradients(small, rng, rngs, variant):
    config = small(**VARIANTS[variant] | {"num_queries": 300})
    if variant != "single_scale":
        config = dataclasses.replace(config, backbone_levels=2)
    model = config.build(rngs=rngs)
    images, sizes = rng.normal(size=(1, 32, 32, 3)).astype(np.float32), np.array([[20, 31]], np.int32)

    def total(model):
        outputs = model(images, sizes)
        parts = [outputs.layers] + ([outputs.proposals] if outputs.proposals else [])
        return sum(jnp.sum(jax.nn.sigmoid(part.logits)) + jnp.sum(part.boxes) for part in parts)

    gradients = nnx.grad(total)(model)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.as_pure(gradients)))
    assert model(images, sizes).logits.shape == (2, 1, 300, 5)


def test_a_new_model_gives_every_class_the_prior_probability(small, rngs, rng):
    model = small().build(rngs=rngs)
    outputs = model(rng.normal(size=(1, 64, 64, 3)).astype(np.float32), np.array([[64, 64]], np.int32))
    assert np.median(jax.nn.sigmoid(outputs.logits)) == pytest.approx(0.01, abs=0.005)
    np.testing.assert_allclose(outputs.boxes[..., 2:], jax.nn.sigmoid(-2.0), rtol=1e-5)
