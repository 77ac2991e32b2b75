"""Losses, gradients and a stretch of training against torch, from the same weights and targets."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from detr_jax.config import Config, OptimizerConfig
from detr_jax.losses import set_loss
from detr_jax.matching import Targets
from detr_jax.models import normalize_images
from detr_jax.sharding import create_mesh
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.state import create_model, create_state
from detr_jax.training.step import BatchInputs, create_train_step
from detr_jax.weights import merge_pretrained, read_pretrained
from detr_jax.weights.huggingface import HUGGINGFACE
from detr_jax.weights.sorting import sort_tensors
from detr_jax.weights.trees import by_path
from tests.conftest import SEED
from tests.parity.torch_models import RESNETS, SMALL, SMALL_TRANSFORMER, random_detr
from tests.parity.torch_training import freeze_as_the_original, total_loss

SIZES = np.array([[120, 190], [128, 101]], np.int32)
BUCKET = (128, 192)
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
    """A padded batch of uint8 images with three boxes and one, for both sides."""
    images = rng.integers(0, 256, (2, *BUCKET, 3), dtype=np.uint8)
    count = np.array([3, 1], np.int32)
    boxes = np.concatenate([rng.uniform(0.3, 0.7, (2, 3, 2)), rng.uniform(0.1, 0.5, (2, 3, 2))], -1).astype(np.float32)
    labels = rng.integers(0, 6, (2, 3)).astype(np.int32)
    ours = BatchInputs(
        jnp.asarray(images), jnp.asarray(SIZES), Targets(jnp.asarray(boxes), jnp.asarray(labels), jnp.asarray(count))
    )
    pixels = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    mask = np.zeros((2, *BUCKET), np.int64)
    for i, (height, width) in enumerate(SIZES):
        mask[i, :height, :width] = 1
    pixels = (pixels * mask[..., None]).astype(np.float32).transpose(0, 3, 1, 2)
    targets = [
        {"boxes": torch.from_numpy(boxes[i, :n]), "labels": torch.from_numpy(labels[i, :n]).long()}
        for i, n in enumerate(count)
    ]
    return ours, (torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(mask), targets)


def gradient_of(model, config, batch):
    @jax.jit
    def compute(params):
        def loss_of(params):
            module = model.merge(params, model.frozen)
            images = normalize_images(batch.images, batch.valid_sizes)
            return set_loss(module(images, batch.valid_sizes), batch.targets, config.loss)[0]

        return jax.value_and_grad(loss_of)(params)

    return compute(model.params)


def test_every_gradient_is_that_of_torch(pair, batch):
    reference, model, config = pair
    ours, theirs = batch
    trained = freeze_as_the_original(reference)
    expected_loss = total_loss(reference, *theirs)
    expected_loss.backward()
    expected = sort_tensors({name: p.grad.numpy() for name, p in trained.items()}, HUGGINGFACE).converted()

    loss, gradient = gradient_of(model, config, ours)
    found = {path: np.asarray(value) for path, value in by_path(gradient).items()}
    np.testing.assert_allclose(loss, float(expected_loss.detach()), rtol=1e-5)
    assert found.keys() == expected.keys()

    norm = np.sqrt(sum(np.square(value).sum() for value in expected.values()))
    # some gradients are zero by symmetry (a softmax does not see its keys' bias, and the first decoder layer's queries
    # attend to equal values), and only rounding is left of them: some 1e-8 of the norm
    floor = 1e-4 * norm
    errors = {
        path: np.linalg.norm(found[path] - value) / max(np.linalg.norm(value), floor)
        for path, value in expected.items()
    }
    worst = max(errors, key=errors.__getitem__)
    print(f"{len(errors)} tensors, worst {worst}: {errors[worst]:.1e}; norm {norm:.4f}")
    assert errors[worst] < 1e-3
    np.testing.assert_allclose(float(optax.tree.norm(gradient)), norm, rtol=1e-4)


def test_twelve_steps_of_training_follow_torch(pair, batch):
    reference, model, config = pair
    ours, theirs = batch
    trained = freeze_as_the_original(reference)
    groups = [
        {"params": [p for name, p in trained.items() if "backbone" not in name]},
        {"params": [p for name, p in trained.items() if "backbone" in name], "lr": BACKBONE_LEARNING_RATE},
    ]
    torch_optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    mesh = create_mesh(jax.devices()[:1])
    optimizer = create_optimizer(config.optimizer, 12, 12)
    state = create_state(model, optimizer, config, mesh)
    step = create_train_step(model, optimizer, config, mesh)

    found, expected = [], []
    for _ in range(12):
        loss = total_loss(reference, *theirs)
        torch_optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), CLIP_NORM)
        torch_optimizer.step()
        state, terms = step(state, model.frozen, ours)
        expected.append(float(loss.detach()))
        found.append(float(terms["loss"]))
        print(f"ours {found[-1]:.4f} torch {expected[-1]:.4f}; norms {float(terms['gradient_norm']):.3f} {norm:.3f}")
    np.testing.assert_allclose(found[-1], expected[-1], rtol=0.01)
    assert expected[-1] < 0.98 * expected[0], "the steps should change something"
    assert abs((found[0] - found[-1]) / (expected[0] - expected[-1]) - 1) < 0.1
