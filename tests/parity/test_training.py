"""Losses, gradients and a stretch of training against torch, from the same weights and targets."""

import copy

import jax
import numpy as np
import pytest

from detr_jax.config import Config, OptimizerConfig
from detr_jax.training.state import create_model
from detr_jax.weights import merge_pretrained, read_pretrained
from detr_jax.weights.huggingface import HUGGINGFACE
from detr_jax.weights.sorting import sort_tensors
from tests.conftest import SEED
from tests.parity.torch_models import RESNETS, SMALL, SMALL_TRANSFORMER, random_detr
from tests.parity.torch_training import freeze_as_the_original, total_loss
from tests.parity.training import assert_gradients_agree, assert_steps_follow, gradient_of, random_batch

LEARNING_RATE, BACKBONE_LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 1e-5, 1e-4, 0.1

MODELS = {
    "small": (SMALL, {**SMALL_TRANSFORMER, "decided": True}),
    "r50": (RESNETS[50], {"encoder_layers": 2, "decoder_layers": 3, "decided": True}),
}


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax mixes int32 counts with floats, which the strict promotion of the other tests forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module", params=MODELS)
def imported(request, tmp_path_factory):
    """transformers' model, and ours with its weights as a training starts with them, without dropout."""
    resnet, fields = MODELS[request.param]
    print(f"TEST_SEED={SEED}")
    reference = random_detr(np.random.default_rng(SEED), resnet, **fields)
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder)
    weights = read_pretrained(folder, mask_padding=False)
    weights.config.dropout = 0.0
    config = Config(
        model=weights.config,
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE,
            backbone_learning_rate=BACKBONE_LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            clip_norm=CLIP_NORM,
            schedule="constant",
        ),
    )
    model = create_model(config)
    tree, outcomes = merge_pretrained(model.full_tree, weights, config.model)
    assert {outcome.what for outcome in outcomes} == {"loaded"}
    return reference, model.with_tree(tree), config


@pytest.fixture
def pair(imported):
    """The same, with a copy of transformers' model that a test may train."""
    reference, model, config = imported
    return copy.deepcopy(reference), model, config


@pytest.fixture
def batch(rng):
    return random_batch(rng)


def test_every_gradient_is_that_of_torch(pair, batch):
    reference, model, config = pair
    ours, theirs = batch
    trained = freeze_as_the_original(reference)
    expected_loss = total_loss(reference, *theirs)
    expected_loss.backward()
    expected = sort_tensors({name: p.grad.numpy() for name, p in trained.items()}, HUGGINGFACE).converted()

    loss, gradient = gradient_of(model, config, ours)
    np.testing.assert_allclose(loss, float(expected_loss.detach()), rtol=1e-5)
    # the first decoder layer's queries attend to equal values, which leaves only rounding of some 1e-8 of the norm
    assert_gradients_agree(gradient, expected, smallest=lambda norms: 1e-4 * np.linalg.norm(norms))


def test_twelve_steps_of_training_follow_torch(pair, batch):
    reference, model, config = pair
    ours, theirs = batch
    trained = freeze_as_the_original(reference)
    groups = [
        {"params": [p for name, p in trained.items() if "backbone" not in name]},
        {"params": [p for name, p in trained.items() if "backbone" in name], "lr": BACKBONE_LEARNING_RATE},
    ]
    assert_steps_follow(model, config, ours, lambda: total_loss(reference, *theirs), groups)
