"""The public helpers of `detr_jax.testing`, with the detector that they are meant for."""

import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from detr_jax.config import check
from detr_jax.losses import set_loss
from detr_jax.testing import random_batch, reference_match, tiny_config


def test_a_tiny_detector_takes_a_random_batch_and_has_a_loss(rng, rngs):
    config = check(tiny_config())
    batch = random_batch(rng, [0, 4, 2], bucket=(64, 32), num_classes=3)
    assert (batch.valid_sizes >= [32, 16]).all()
    assert (batch.valid_sizes <= [64, 32]).all()
    for image, (height, width) in zip(batch.images, batch.valid_sizes, strict=True):
        assert image[:height, :width].any()
        assert not image[height:].any()
        assert not image[:, width:].any()
    model = config.model.build(rngs=rngs)

    @nnx.jit
    def loss_of(model):
        outputs = model(model.normalize(batch.images, batch.valid_sizes), batch.valid_sizes)
        return set_loss(outputs, batch.targets, config.loss)[0]

    assert np.isfinite(loss_of(model))


@pytest.mark.parametrize(("queries", "targets"), [(5, 3), (3, 5)])
def test_the_reference_matching_has_the_lowest_total_cost(rng, queries, targets):
    cost = rng.normal(size=(2, 2, queries, targets))
    found = reference_match(cost, np.array([targets, 0]))
    assert (found[:, 1] == -1).all()
    for layer in range(2):
        own = cost[layer, 0].T if queries > targets else cost[layer, 0]
        orders = itertools.permutations(range(max(own.shape)), len(own))
        lowest = min(sum(own[i, j] for i, j in enumerate(order)) for order in orders)
        matched = np.flatnonzero(found[layer, 0] >= 0)
        assert cost[layer, 0][found[layer, 0][matched], matched].sum() == pytest.approx(lowest)


def test_random_batches_follow_the_seed():
    one, other = (random_batch(np.random.default_rng(3), [1, 2], bucket=(32, 32), num_classes=5) for _ in range(2))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)
