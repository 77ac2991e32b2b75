"""Features, memory, logits and boxes against transformers' DETR with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.weights import load_pretrained
from tests.outputs import model_outputs
from tests.parity.torch_models import (
    RESNETS,
    SMALL,
    SMALL_BASIC,
    SMALL_TRANSFORMER,
    padded,
    random_detr,
    reference_outputs,
)

TOLERANCE = 1e-4  # absolute; the aim of 1e-5 is what the printed figures are compared with
SIZES = ((187, 300), (224, 203))  # (height, width); neither is a multiple of 32
BUCKET = (224, 320)
BUCKET = (256, 352)

MODELS = {
    "small": (SMALL, SMALL_TRANSFORMER, False),
    "small-basic": (SMALL_BASIC, SMALL_TRANSFORMER, False),
    "small-learned": (SMALL, {**SMALL_TRANSFORMER, "position_embedding_type": "learned"}, False),
    "small-dc5": (SMALL, SMALL_TRANSFORMER, True),
    "r18": (RESNETS[18], {}, False),
    "r50": (RESNETS[50], {}, False),
    "r50-dc5": (RESNETS[50], {}, True),
    "r101": (RESNETS[101], {}, False),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """transformers' model and a folder with its weights."""
    resnet, fields, dc5 = MODELS[request.param]
    seed = int(np.random.default_rng().integers(2**31))
    print(f"{request.param}: seed {seed}")
    model = random_detr(np.random.default_rng(seed), resnet, dc5=dc5, **fields)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder, dc5


def assert_close(found, expected, where):
    errors = {name: float(np.abs(np.asarray(found[name]) - expected[name]).max()) for name in expected}
    scale = {name: float(np.abs(expected[name]).max()) for name in expected}
    print(where, {name: f"{error:.1e} of {scale[name]:.1f}" for name, error in errors.items()})
    assert max(errors.values()) < TOLERANCE, errors


def test_a_padded_batch_is_answered_as_the_original_does(pair, rng):
    model, folder, dc5 = pair
    images = padded([rng.normal(size=(*size, 3)) for size in SIZES], BUCKET)
    ours = load_pretrained(folder, dilation=dc5, mask_padding=False)
    found = model_outputs(ours, jnp.asarray(images), jnp.asarray(SIZES))
    assert_close(found, reference_outputs(model, images, SIZES), "batch")


def test_an_image_in_a_bucket_is_answered_as_the_original_answers_it_alone(pair, rng):
    model, folder, dc5 = pair
    images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in SIZES]
    ours = load_pretrained(folder, dilation=dc5)
    together = jax.device_get(model_outputs(ours, jnp.asarray(padded(images, BUCKET)), jnp.asarray(SIZES)))
    for i, image in enumerate(images):
        expected = reference_outputs(model, image[None], SIZES[i : i + 1])
        height, width = expected["features"].shape[1:3]
        found = {name: value[i : i + 1] for name, value in together.items()}
        found |= {name: found[name][:, :height, :width] for name in ("features", "memory")}
        assert_close(found, expected, f"image {i} in a bucket")
