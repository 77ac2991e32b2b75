"""Logits, boxes and proposals against transformers' Deformable DETR with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from detr_jax.weights import load_pretrained
from tests.parity.torch_deformable import VARIANTS, layer_outputs, random_deformable, save_with_every_name
from tests.parity.torch_models import padded

TOLERANCE = 1e-4
SIZES = ((187, 300), (224, 203))  # (height, width); neither is a multiple of 64
BUCKET = (256, 320)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """transformers' model, a folder with its weights, and the variant."""
    variant = VARIANTS[request.param]
    seed = int(np.random.default_rng().integers(2**31))
    print(f"{request.param}: seed {seed}")
    model = random_deformable(np.random.default_rng(seed), variant)
    folder = tmp_path_factory.mktemp(request.param)
    save_with_every_name(model, folder, variant)
    return model, folder, variant


@torch.no_grad()
def reference_outputs(model, images, sizes):
    """Logits and boxes of every decoder layer, [L, B, Q, ...], and of the proposals, [B, S, ...]."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    mask = torch.zeros(len(images), *images.shape[1:3], dtype=torch.long)
    for place, (height, width) in zip(mask, sizes, strict=True):
        place[:height, :width] = 1
    layers, proposals = layer_outputs(model, pixels, mask)
    found = {"logits": layers.logits, "boxes": layers.boxes}
    if proposals is not None:
        found |= {"proposed_logits": proposals.logits[0], "proposed_boxes": proposals.boxes[0]}
    return {name: value.numpy() for name, value in found.items()}


def our_outputs(model, images, sizes):
    """The same of our model."""
    found = jax.jit(lambda images, sizes: model(images, sizes))(jnp.asarray(images), jnp.asarray(sizes))
    result = {"logits": found.layers.logits, "boxes": found.layers.boxes}
    if found.proposals is not None:
        result |= {"proposed_logits": found.proposals.logits[0], "proposed_boxes": found.proposals.boxes[0]}
    return {name: np.asarray(value) for name, value in result.items()}


def assert_close(found, expected, where):
    errors = {name: float(np.abs(found[name] - expected[name]).max()) for name in expected}
    print(where, {name: f"{error:.1e} of {np.abs(expected[name]).max():.1f}" for name, error in errors.items()})
    assert max(errors.values()) < TOLERANCE, errors


def assert_telling(expected):
    """The comparison means something only if queries, images and layers differ."""
    for name in ("logits", "boxes"):
        assert expected[name].std(axis=2).mean() > 0.02, name
        assert np.abs(np.diff(expected[name], axis=0)).mean() > 0.005, name


def test_a_padded_batch_is_answered_as_transformers_does(pair, rng):
    model, folder, variant = pair
    images = padded([rng.normal(size=(*size, 3)) for size in SIZES], BUCKET)
    ours = load_pretrained(folder, dilation=variant.dc5, mask_padding=False)
    expected = reference_outputs(model, images, SIZES)
    assert_telling(expected)
    assert_close(our_outputs(ours, images, SIZES), expected, "batch")


def test_an_image_in_a_bucket_is_answered_as_transformers_answers_it_alone(pair, rng):
    model, folder, variant = pair
    images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in SIZES]
    ours = load_pretrained(folder, dilation=variant.dc5)
    together = our_outputs(ours, padded(images, BUCKET), SIZES)
    for i, image in enumerate(images):
        expected = reference_outputs(model, image[None], SIZES[i : i + 1])
        expected = {name: expected[name] for name in ("logits", "boxes")}
        assert_close({name: together[name][:, i : i + 1] for name in expected}, expected, f"image {i} in a bucket")
