"""One batch for both sides, and comparisons of gradients and of steps of training with torch."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from detr_jax.config import Config
from detr_jax.losses import set_loss
from detr_jax.matching import Targets
from detr_jax.models import normalize_images
from detr_jax.sharding import create_mesh
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.state import create_state
from detr_jax.training.step import BatchInputs, create_train_step
from detr_jax.weights.trees import by_path

SIZES = np.array([[120, 190], [128, 101]], np.int32)
BUCKET = (128, 192)
STEPS = 12


def random_batch(rng: np.random.Generator) -> tuple[BatchInputs, tuple[torch.Tensor, torch.Tensor, list[dict]]]:
    """A padded batch of uint8 images with three boxes and one, for both sides.

    Returns:
      Our inputs, and for torch the normalised pixels, the mask and the targets.
    """
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


def gradient_of(model, config: Config, batch: BatchInputs):
    """The loss of our model, and its gradient as a tree."""

    @jax.jit
    def compute(params):
        def loss_of(params):
            module = model.merge(params, model.frozen)
            images = normalize_images(batch.images, batch.valid_sizes)
            return set_loss(module(images, batch.valid_sizes), batch.targets, config.loss)[0]

        return jax.value_and_grad(loss_of)(params)

    return compute(model.params)


def assert_gradients_agree(found, expected: Mapping[str, np.ndarray], smallest: Callable[[list[float]], float]) -> None:
    """Each tensor of a gradient differs from torch's by less than a thousandth of its norm.

    Args:
      found: our tree.
      expected: torch's, converted, by our path.
      smallest: from the norms of all tensors, the one that smaller tensors are taken to have. Some gradients are zero
        by symmetry (a softmax does not see its keys' bias), and only rounding is left of them.
    """
    total = optax.tree.norm(found)
    found = {path: np.asarray(value) for path, value in by_path(found).items()}
    assert found.keys() == expected.keys()
    norms = {path: np.linalg.norm(value) for path, value in expected.items()}
    norm = np.linalg.norm(list(norms.values()))
    floor = smallest(list(norms.values()))
    errors = {path: np.linalg.norm(found[path] - value) / max(norms[path], floor) for path, value in expected.items()}
    worst = max(errors, key=errors.__getitem__)
    print(f"{len(errors)} tensors, worst {worst}: {errors[worst]:.1e}; norm {norm:.4f}")
    assert errors[worst] < 1e-3
    np.testing.assert_allclose(float(total), norm, rtol=1e-4)


def assert_steps_follow(
    model, config: Config, batch: BatchInputs, loss_of_torch: Callable[[], torch.Tensor], groups: list[dict]
) -> None:
    """Our training reaches the losses of torch's AdamW.

    Args:
      loss_of_torch: computes the loss of the parameters as they are.
      groups: torch's parameters, with the learning rates that differ from the config's.
    """
    settings = config.optimizer
    torch_optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    trained = [parameter for group in groups for parameter in group["params"]]
    mesh = create_mesh(jax.devices()[:1])
    optimizer = create_optimizer(settings, STEPS, STEPS)
    state = create_state(model, optimizer, config, mesh)
    step = create_train_step(model, optimizer, config, mesh)

    found, expected = [], []
    for _ in range(STEPS):
        loss = loss_of_torch()
        torch_optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        torch_optimizer.step()
        state, terms = step(state, model.frozen, batch)
        expected.append(float(loss.detach()))
        found.append(float(terms["loss"]))
        print(f"ours {found[-1]:.4f} torch {expected[-1]:.4f}; norms {float(terms['gradient_norm']):.3f} {norm:.3f}")
    np.testing.assert_allclose(found[-1], expected[-1], rtol=0.01)
    assert expected[-1] < 0.98 * expected[0], "the steps should change something"
    assert abs((found[0] - found[-1]) / (expected[0] - expected[-1]) - 1) < 0.1
