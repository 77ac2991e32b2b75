"""Losses, gradients and a stretch of training of Deformable DETR against torch, from the same weights and targets."""

import copy

import jax
import numpy as np
import pytest

from detr_jax.config import Config, LossConfig, OptimizerConfig, focal_costs, focal_terms
from detr_jax.training.state import create_model
from detr_jax.weights import merge_pretrained, read_pretrained
from detr_jax.weights.deformable_huggingface import DEFORMABLE_HUGGINGFACE, DEFORMABLE_HUGGINGFACE_REFINED
from detr_jax.weights.sorting import sort_tensors
from tests.conftest import SEED
from tests.parity.torch_deformable import Variant, random_deformable, save_with_every_name
from tests.parity.torch_training import freeze_as_the_original, total_focal_loss
from tests.parity.training import assert_gradients_agree, assert_steps_follow, gradient_of, random_batch

LEARNING_RATE, BACKBONE_LEARNING_RATE, SLOW_LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 2e-4, 2e-5, 2e-5, 1e-4, 0.1

VARIANTS = {
    "single": Variant(1, decided=True),
    "multi": Variant(4, decided=True),
    "refined": Variant(4, refined=True, own_heads=True, decided=True),
    "two-stage": Variant(4, refined=True, two_stage=True, own_heads=True, decided=True),
}


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax mixes int32 counts with floats, which the strict promotion of the other tests forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def imported(request, tmp_path_factory):
    """transformers' model, ours with its weights as a training starts with them, without dropout, and a batch."""
    variant = VARIANTS[request.param]
    print(f"TEST_SEED={SEED}")
    rng = np.random.default_rng(SEED)
    reference = random_deformable(rng, variant)
    ours, theirs = random_batch(rng)
    folder = tmp_path_factory.mktemp(request.param)
    save_with_every_name(reference, folder, variant)
    weights = read_pretrained(folder, mask_padding=False)
    weights.config.dropout = 0.0
    config = Config(
        model=weights.config,
        loss=LossConfig(terms=focal_terms(), costs=focal_costs()),
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE,
            backbone_learning_rate=BACKBONE_LEARNING_RATE,
            slow_parameters=("sampling_offsets", *([] if variant.two_stage else ["queries/reference"])),
            slow_factor=SLOW_LEARNING_RATE / LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            clip_norm=CLIP_NORM,
            schedule="constant",
        ),
    )
    model = create_model(config)
    tree, outcomes = merge_pretrained(model.full_tree, weights, config.model)
    assert {outcome.what for outcome in outcomes} == {"loaded"}
    return reference, model.with_tree(tree), config, ours, theirs


@pytest.mark.parametrize("imported", VARIANTS, indirect=True)
def test_every_gradient_is_that_of_torch(imported):
    reference, model, config, ours, theirs = imported
    reference = copy.deepcopy(reference)
    trained = freeze_as_the_original(reference)
    expected_loss = total_focal_loss(reference, *theirs)
    expected_loss.backward()
    layout = DEFORMABLE_HUGGINGFACE_REFINED if config.model.refine_boxes else DEFORMABLE_HUGGINGFACE
    expected = sort_tensors({name: p.grad.numpy() for name, p in trained.items()}, layout).converted()

    loss, gradient = gradient_of(model, config, ours)
    np.testing.assert_allclose(loss, float(expected_loss.detach()), rtol=1e-5)
    # the norm of all is no measure: the last layer of the box head may make up nearly all of it
    assert_gradients_agree(gradient, expected, smallest=lambda norms: 3e-3 * np.median(norms))


@pytest.mark.parametrize("imported", ["multi", "refined"], indirect=True)
def test_twelve_steps_of_training_follow_torch(imported):
    reference, model, config, ours, theirs = imported
    reference = copy.deepcopy(reference)
    trained = freeze_as_the_original(reference)

    def learning_rate(name):
        if "backbone" in name:
            return BACKBONE_LEARNING_RATE
        return SLOW_LEARNING_RATE if "sampling_offsets" in name or "reference_points" in name else LEARNING_RATE

    groups = [{"params": [parameter], "lr": learning_rate(name)} for name, parameter in trained.items()]
    assert_steps_follow(model, config, ours, lambda: total_focal_loss(reference, *theirs), groups)
