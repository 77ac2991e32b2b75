"""DINO: sizes, padding, denoising that never leaks, gradients and the training step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.config import DINOConfig, LossConfig, Matcher, dino_terms, focal_costs
from detr_jax.losses import set_loss
from detr_jax.models import abstract_model, dino_4scale_resnet50, dino_5scale_resnet50
from detr_jax.testing import random_targets
from tests.models.test_deformable_detr import spread

CLASSES = 5
LOSS = LossConfig(terms=dino_terms(), costs=focal_costs(), matcher=Matcher.DEVICE)


def number_of_parameters(config):
    """Without the statistics of frozen batch norms, which the original counts as buffers."""
    _, abstract = abstract_model(config)
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    keys = [({part.key for part in path}, math.prod(leaf.shape)) for path, leaf in leaves]
    return sum(size for path, size in keys if not path >= {"norm", "backbone"})


def test_the_published_model_has_as_many_parameters():
    unused_label = 256  # a row of the original's label embedding for a class that does not occur
    assert number_of_parameters(dino_4scale_resnet50()) == 46_893_182 - unused_label


def test_heads_of_their_own_and_a_fifth_scale_add_their_parameters():
    head = 256 * 91 + 91 + 2 * (256 * 256 + 256) + 256 * 4 + 4
    shared = number_of_parameters(dino_4scale_resnet50())
    assert number_of_parameters(dino_4scale_resnet50(share_heads=False)) == shared + 5 * head
    sampled = 12 * 8 * 4 * 3 * 257  # offsets and weights of 12 layers
    level = 256 * 256 + 3 * 256 + 256
    assert number_of_parameters(dino_5scale_resnet50()) == shared + sampled + level


@pytest.fixture
def small(tiny_backbone):
    """A factory of detectors with 128 channels and three feature maps; keywords override fields."""

    def config(**fields):
        defaults = {
            "backbone": tiny_backbone(blocks=(1, 1, 1), width=16),
            "num_classes": CLASSES,
            "num_queries": 20,
            "hidden_dim": 128,
            "feedforward_dim": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "backbone_levels": 2,
            "denoising_queries": 24,
        }
        return DINOConfig(**defaults | fields)

    return config


@pytest.mark.parametrize("share_heads", [True, False])
def test_padding_never_changes_an_answer(small, rng, rngs, share_heads):
    model = spread(small(share_heads=share_heads).build(rngs=rngs), rng)
    sizes = np.array([[90, 70], [128, 61]], np.int32)
    images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in sizes]

    @jax.jit
    def run(images, sizes):
        outputs = model(images, sizes)
        return outputs.logits, outputs.boxes, outputs.proposals.logits, outputs.proposals.boxes

    def answers(bucket):
        batch = np.zeros((2, *bucket, 3), np.float32)
        for row, image, size in zip(batch, images, sizes, strict=True):
            row[: size[0], : size[1]] = image
        return run(batch, sizes)

    expected = answers((128, 96))
    for bucket in ((160, 96), (192, 192)):
        for found, wanted in zip(answers(bucket), expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("counts", [(3, 1), (0, 0), (12, 5)])
def test_denoising_never_leaks(small, rng, rngs, counts):
    model = spread(small().build(rngs=rngs), rng)
    images = rng.normal(size=(2, 64, 96, 3)).astype(np.float32)
    sizes = np.array([[64, 96], [50, 61]], np.int32)
    targets = random_targets(rng, counts, num_classes=CLASSES, max_objects=12)
    run = jax.jit(lambda targets, key: model(images, sizes, targets=targets, rngs=nnx.Rngs(dropout=key)))
    plain, trained = jax.jit(lambda: model(images, sizes))(), run(targets, jax.random.key(1))
    assert plain.denoising is None
    for of_plain, of_trained in ((plain.layers, trained.layers), (plain.proposals, trained.proposals)):
        np.testing.assert_allclose(of_trained.logits, of_plain.logits, atol=1e-5)
        np.testing.assert_allclose(of_trained.boxes, of_plain.boxes, atol=1e-5)
    found = trained.denoising
    assert found.predictions.logits.shape == (2, 2, 24, CLASSES)
    np.testing.assert_array_equal((found.matched_query >= 0).sum(axis=1), np.array(counts) * int(found.num_groups))
    again, other = run(targets, jax.random.key(1)).denoising, run(targets, jax.random.key(2)).denoising
    np.testing.assert_array_equal(again.predictions.boxes, found.predictions.boxes)
    assert not np.array_equal(other.predictions.boxes, found.predictions.boxes)


def test_unused_slots_and_padding_of_the_targets_never_change_the_loss(small, rng, rngs):
    """An image has the same denoising loss whatever stands in the padding of its targets."""
    model = spread(small().build(rngs=rngs), rng)
    images, sizes = rng.normal(size=(2, 64, 64, 3)).astype(np.float32), np.array([[64, 64], [50, 61]], np.int32)

    @jax.jit
    def terms(targets):
        outputs = model(images, sizes, targets=targets, rngs=nnx.Rngs(dropout=0))
        return set_loss(outputs, targets, LOSS)[1]

    targets = random_targets(rng, (4, 2), num_classes=CLASSES, max_objects=7)
    there = jnp.arange(7)[None] < targets.count[:, None]
    other = random_targets(rng, (4, 2), num_classes=CLASSES, max_objects=7)
    mixed = type(targets)(
        jnp.where(there[..., None], targets.boxes, other.boxes),
        jnp.where(there, targets.labels, other.labels),
        targets.count,
    )
    found, expected = terms(mixed), terms(targets)
    assert {"loss_ce_dn", "loss_bbox_dn_0", "loss_giou_enc"} <= expected.keys()
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("counts", [(0, 0), (4, 1), (12, 12)])
def test_the_loss_of_the_denoising_queries_follows_the_definition(small, rng, rngs, counts):
    model = spread(small().build(rngs=rngs), rng)
    images, sizes = rng.normal(size=(2, 64, 64, 3)).astype(np.float32), np.array([[64, 64], [50, 61]], np.int32)
    targets = random_targets(rng, counts, num_classes=CLASSES, max_objects=12)

    @jax.jit
    def run(targets):
        outputs = model(images, sizes, targets=targets, rngs=nnx.Rngs(dropout=5))
        return outputs.denoising, set_loss(outputs, targets, LOSS)[1]

    found, terms = run(targets)
    largest, pairs = max(*counts, 1), 12
    groups = max(1, pairs // largest)
    focal, distance = 0.0, 0.0
    logits, boxes = (np.asarray(x[-1], np.float64) for x in (found.predictions.logits, found.predictions.boxes))
    for image, count in enumerate(counts):
        for group in range(groups):
            for target in range(count):
                for is_negative in (False, True):
                    slot = group * 2 * largest + target + is_negative * largest
                    wanted = np.zeros(CLASSES, bool)
                    wanted[int(targets.labels[image, target])] = not is_negative
                    p = 1 / (1 + np.exp(-logits[image, slot]))
                    right = np.where(wanted, p, 1 - p)
                    focal += (np.where(wanted, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)).sum()
                    if not is_negative:
                        distance += np.abs(boxes[image, slot] - np.asarray(targets.boxes[image, target])).sum()
    divisor = max(sum(counts) * groups, 1)
    assert float(terms["loss_ce_dn"]) == pytest.approx(focal / divisor, rel=1e-4)
    assert float(terms["loss_bbox_dn"]) == pytest.approx(distance / divisor, rel=1e-4)


@pytest.mark.parametrize(("counts", "bucket"), [((0, 0), 64), ((3, 1), 64), ((12, 12), 32)])
def test_gradients_are_finite_and_reach_every_part(small, rng, rngs, counts, bucket):
    """The smallest bucket has fewer cells than there are queries."""
    model = small().build(rngs=rngs)
    images = rng.normal(size=(2, bucket, bucket, 3)).astype(np.float32)
    sizes = np.array([[bucket, bucket], [bucket // 2, bucket - 5]], np.int32)
    targets = random_targets(rng, counts, num_classes=CLASSES, max_objects=12)

    @nnx.jit
    def gradient(model):
        def loss(model):
            outputs = model(images, sizes, targets=targets, rngs=nnx.Rngs(dropout=0))
            return set_loss(outputs, targets, LOSS)[0]

        return nnx.grad(loss)(model)

    found = nnx.as_pure(gradient(model))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    parts = ("content", "proposer", "class_head", "decoder", "encoder", "pyramid")
    for part in parts + (("label_embedding", "box_head") if max(counts) else ()):
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found[part])), part


def test_a_layer_is_trained_through_the_next_prediction_but_not_through_its_reference(small, rng, rngs):
    """Look forward twice: the second prediction reaches the first layer's box head, and so on one layer only."""
    model = spread(small(share_heads=False, decoder_layers=3).build(rngs=rngs), rng)
    images, sizes = rng.normal(size=(1, 64, 64, 3)).astype(np.float32), np.array([[64, 64]], np.int32)

    @nnx.jit
    def reached(model):
        def total(model, layer):
            return model(images, sizes).boxes[layer].sum()

        heads = [nnx.as_pure(nnx.grad(total)(model, layer))["box_head"] for layer in range(3)]
        return [[jnp.abs(of_layer[i]["layers"][2]["bias"]).max() for i in range(3)] for of_layer in heads]

    assert (np.array(reached(model)) > 0).tolist() == [[True, False, False], [True, True, False], [False, True, True]]


def test_masks_and_softmax_are_refused(small):
    sentences = " ".join(small(classification="softmax", hidden_dim=12, num_heads=1).faults("model."))
    assert "model.classification" in sentences
    assert "model.hidden_dim=12 must be a multiple of 8" in sentences
