"""The losses of masks against numpy from the definition, and against images alone."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.config import LossConfig, MaskDice, MaskFocal, MaskHeadConfig, MaskTerm, Norm, ResNetConfig, Stem
from detr_jax.losses import set_loss
from detr_jax.masks import pack_masks
from detr_jax.models import detr_resnet50
from detr_jax.structures import Targets
from tests.test_masks import interpolated

BACKBONE = ResNetConfig(block="basic", blocks=(1, 1, 1), width=16, stem=Stem.SMALL, norm=Norm.GROUP)
TERMS = {"mask": MaskFocal(weight=2.0), "dice": MaskDice(weight=3.0)}


@dataclass(kw_only=True)
class MeanProbability(MaskTerm):
    """A term of a user's own."""

    def compute_masks(self, masks):
        return masks.mean(jax.nn.sigmoid(masks.logits))


@pytest.fixture
def model(rngs):
    config = detr_resnet50(
        backbone=BACKBONE,
        num_classes=4,
        num_queries=9,
        hidden_dim=128,
        encoder_layers=1,
        decoder_layers=2,
        feedforward_dim=64,
        masks=MaskHeadConfig(block_size=3),
    )
    return config.build(rngs=rngs)


def targets_of(rng, counts, sizes, bucket, room=7):
    boxes = np.zeros((len(counts), room, 4), np.float32)
    masks = np.zeros((len(counts), room, *bucket), bool)
    labels = rng.integers(0, 4, (len(counts), room)).astype(np.int32)
    for i, (count, (height, width)) in enumerate(zip(counts, sizes, strict=True)):
        boxes[i, :count] = rng.uniform(0.2, 0.6, (count, 4))
        masks[i, :count, :height, :width] = rng.random((count, height, width)) < 0.3
    return Targets(boxes, labels, np.array(counts, np.int32), pack_masks(masks)), masks


def losses(model, images, sizes, targets, terms=TERMS, counts=None):
    config = LossConfig(terms=terms)

    @nnx.jit
    def of(model, images, sizes, targets):
        outputs = model(images, sizes)
        queries = jnp.broadcast_to(jnp.arange(9)[None], (len(sizes), 9))
        found = set_loss(outputs, targets, config, detector=model, valid_sizes=sizes, batch_counts=counts)
        return found, outputs, model.mask_logits(outputs.mask_features, queries)

    return of(model, jnp.asarray(images), jnp.asarray(sizes), jax.tree.map(jnp.asarray, targets))


def focal(logits, target):
    p = 1 / (1 + np.exp(-logits))
    right, weight = np.where(target, p, 1 - p), np.where(target, 0.25, 0.75)
    return (-weight * (1 - right) ** 2 * np.log(right)).mean()


def dice(logits, target):
    p = 1 / (1 + np.exp(-logits))
    return 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)


def test_values_are_those_of_the_definition_over_the_pixels_of_each_image(model, rng):
    from detr_jax.matching import match, matching_cost

    sizes, bucket, counts = ((40, 30), (31, 48)), (40, 48), (5, 7)
    images = rng.normal(size=(2, *bucket, 3)).astype(np.float32)
    targets, masks = targets_of(rng, counts, sizes, bucket)
    (loss, logged), outputs, logits = losses(model, images, sizes, targets)
    last = jax.tree.map(lambda x: x[-1:], outputs.layers)
    on_device = jax.tree.map(jnp.asarray, targets)
    queries = match(matching_cost(last, on_device, LossConfig().costs), on_device.count, "device", None)[0]
    expected = {"loss_mask": 0.0, "loss_dice": 0.0}
    for i, (count, (height, width)) in enumerate(zip(counts, sizes, strict=True)):
        for t in range(count):
            found = np.asarray(logits)[i, int(queries[i, t]), : -(-height // 2), : -(-width // 2)]
            pixels, target = interpolated(found, (height, width)), masks[i, t, :height, :width]
            expected["loss_mask"] += focal(pixels, target) / sum(counts)
            expected["loss_dice"] += dice(pixels, target) / sum(counts)
    for name, value in expected.items():
        assert float(logged[name]) == pytest.approx(value, rel=1e-4)
    assert float(loss) == pytest.approx(2 * expected["loss_mask"] + 3 * expected["loss_dice"], rel=1e-4)


def test_a_bucket_never_changes_a_loss(model, rng):
    sizes = ((40, 30), (31, 48))
    images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in sizes]
    targets, masks = targets_of(rng, (4, 6), sizes, (40, 48))
    values = []
    for bucket in ((40, 48), (64, 56)):
        batch, wider = np.zeros((2, *bucket, 3), np.float32), np.zeros((2, 7, *bucket), bool)
        wider[..., :40, :48] = masks
        for place, image in zip(batch, images, strict=True):
            place[: image.shape[0], : image.shape[1]] = image
        moved = dataclasses.replace(targets, masks=pack_masks(wider))
        values.append(losses(model, batch, sizes, moved)[0][1])
    for name in ("loss_mask", "loss_dice"):
        assert float(values[0][name]) == pytest.approx(float(values[1][name]), rel=1e-4)


def test_a_batch_without_objects_has_a_loss_and_a_gradient_of_zero(model, rng):
    sizes, bucket = ((40, 48), (31, 48)), (40, 48)
    images = rng.normal(size=(2, *bucket, 3)).astype(np.float32)
    targets, _ = targets_of(rng, (0, 0), sizes, bucket)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        module = nnx.merge(graph, params, rest)
        outputs = module(jnp.asarray(images), jnp.asarray(sizes))
        config = LossConfig(terms=TERMS, matcher="device")
        on_device = jax.tree.map(jnp.asarray, targets)
        return set_loss(outputs, on_device, config, detector=module, valid_sizes=jnp.asarray(sizes))[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert float(value) == 0
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))


def test_micro_batches_add_up(model, rng):
    sizes, bucket = ((40, 30), (31, 48)), (40, 48)
    images = rng.normal(size=(2, *bucket, 3)).astype(np.float32)
    targets, _ = targets_of(rng, (3, 6), sizes, bucket)
    (whole, _), *_ = losses(model, images, sizes, targets)
    counts = jnp.asarray(targets.count)
    parts = [
        losses(
            model,
            images[i : i + 1],
            sizes[i : i + 1],
            jax.tree.map(lambda x, i=i: x[i : i + 1], targets),
            TERMS,
            counts,
        )
        for i in range(2)
    ]
    assert float(whole) == pytest.approx(sum(float(part[0][0]) for part in parts), rel=1e-4)


def test_a_term_of_one_s_own(model, rng):
    sizes, bucket = ((40, 48),), (40, 48)
    images = rng.normal(size=(1, *bucket, 3)).astype(np.float32)
    targets, _ = targets_of(rng, (3,), sizes, bucket)
    (_, logged), *_ = losses(model, images, sizes, targets, {"mean": MeanProbability()})
    assert 0 < float(logged["loss_mean"]) < 1


def test_what_is_missing_is_named(model, rng):
    sizes, bucket = ((40, 48),), (40, 48)
    images = rng.normal(size=(1, *bucket, 3)).astype(np.float32)
    targets, _ = targets_of(rng, (3,), sizes, bucket)
    with pytest.raises(ValueError, match="mask, dice need masks"):
        losses(model, images, sizes, dataclasses.replace(targets, masks=None))
