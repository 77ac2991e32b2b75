"""Mask logits, mask losses and their gradients against transformers' DetrForSegmentation with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from detr_jax.config import LossConfig, MaskDice, MaskFocal, default_costs
from detr_jax.inference.masks import ImageMasks
from detr_jax.losses import set_loss
from detr_jax.masks import pack_masks
from detr_jax.structures import Targets
from detr_jax.weights import load_pretrained, read_pretrained
from detr_jax.weights.trees import by_path
from tests.parity.torch_models import RESNETS, SMALL, SMALL_BASIC, SMALL_TRANSFORMER, padded, random_segmentation

TOLERANCE = 1e-4
SIZES = ((187, 300), (221, 203))  # (height, width); not multiples of 4
BUCKET = (224, 320)
WIDE = {**SMALL_TRANSFORMER, "d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
MODELS = {
    "small": (SMALL, WIDE, False),
    "small-basic": (SMALL_BASIC, WIDE, False),
    "small-dc5": (SMALL, WIDE, True),
    "r50": (RESNETS[50], {"num_queries": 20}, False),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """transformers' model and a folder with its weights."""
    resnet, fields, dc5 = MODELS[request.param]
    seed = int(np.random.default_rng().integers(2**31))
    print(f"{request.param}: seed {seed}")
    model = random_segmentation(np.random.default_rng(seed), resnet, dc5=dc5, **fields)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder, dc5


def torch_inputs(images, sizes):
    mask = torch.zeros(len(images), *images.shape[1:3], dtype=torch.long)
    for place, (height, width) in zip(mask, sizes, strict=True):
        place[:height, :width] = 1
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), mask


@nnx.jit
def all_mask_logits(model, images, sizes):
    outputs = model(images, sizes)
    queries = jnp.broadcast_to(jnp.arange(outputs.logits.shape[2])[None], outputs.logits.shape[1:3])
    return model.mask_logits(outputs.mask_features, queries)


def reference_logits(model, images, sizes):
    with torch.no_grad():
        pixels, mask = torch_inputs(images, sizes)
        return model(pixels, pixel_mask=mask).pred_masks.numpy()


def close(found, expected, where):
    error = float(np.abs(found - expected).max())
    print(f"{where}: {error:.1e} of {np.abs(expected).max():.1f}")
    assert error < TOLERANCE * max(1.0, float(expected.std()))


def test_mask_logits_of_a_padded_batch_are_the_original_s(pair, rng):
    model, folder, dc5 = pair
    images = padded([rng.normal(size=(*size, 3)) for size in SIZES], BUCKET)
    ours = load_pretrained(folder, dilation=dc5, mask_padding=False)
    found = np.asarray(all_mask_logits(ours, jnp.asarray(images), jnp.asarray(SIZES)))
    close(found, reference_logits(model, images, SIZES), "batch")


def test_mask_logits_of_an_image_in_a_bucket_are_the_original_s_of_the_image_alone(pair, rng):
    model, folder, dc5 = pair
    images = [rng.normal(size=(*size, 3)).astype(np.float32) for size in SIZES]
    ours = load_pretrained(folder, dilation=dc5)
    together = np.asarray(all_mask_logits(ours, jnp.asarray(padded(images, (256, 352))), jnp.asarray(SIZES)))
    for i, image in enumerate(images):
        expected = reference_logits(model, image[None], SIZES[i : i + 1])
        close(together[i : i + 1, :, : expected.shape[2], : expected.shape[3]], expected, f"image {i}")


def random_targets(rng, counts, classes, room=8):
    """Targets with random blobs, as ours (padded, bits) and as transformers'."""
    height, width = BUCKET
    boxes, labels = np.zeros((len(counts), room, 4), np.float32), np.zeros((len(counts), room), np.int32)
    masks = np.zeros((len(counts), room, height, width), bool)
    theirs = []
    for i, (count, size) in enumerate(zip(counts, SIZES, strict=True)):
        boxes[i, :count] = rng.uniform(0.2, 0.5, (count, 4))
        labels[i, :count] = rng.integers(0, classes, count)
        for mask in masks[i, :count]:
            top, left = rng.integers(0, size[0] - 20), rng.integers(0, size[1] - 20)
            mask[top : rng.integers(top + 5, size[0]), left : rng.integers(left + 5, size[1])] = True
        theirs.append(
            {
                "class_labels": torch.from_numpy(labels[i, :count]).long(),
                "boxes": torch.from_numpy(boxes[i, :count]),
                "masks": torch.from_numpy(masks[i, :count]).float(),
            }
        )
    count = np.array(counts, np.int32)
    return Targets(*map(jnp.asarray, (boxes, labels, count)), jnp.asarray(pack_masks(masks))), theirs


@pytest.mark.parametrize("counts", [(3, 7), (0, 5)])
def test_mask_losses_and_their_gradients_are_the_original_s(pair, rng, counts):
    model, folder, dc5 = pair
    images = padded([rng.normal(size=(*size, 3)) for size in SIZES], BUCKET)
    ours = load_pretrained(folder, dilation=dc5, mask_padding=False)
    ours.mask_head.block_size = 4
    targets, theirs = random_targets(rng, counts, 6)
    terms = {"mask": MaskFocal(), "dice": MaskDice()}
    graph, params, rest = nnx.split(ours, nnx.Param, ...)

    @jax.jit
    def loss_of(params):
        module = nnx.merge(graph, params, rest)
        outputs = module(jnp.asarray(images), jnp.asarray(SIZES))
        config = LossConfig(terms=terms, costs=default_costs(), auxiliary=False)
        return set_loss(outputs, targets, config, detector=module, valid_sizes=jnp.asarray(SIZES))

    (_, logged), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    model.zero_grad()
    pixels, mask = torch_inputs(images, SIZES)
    expected = model(pixels, pixel_mask=mask, labels=theirs).loss_dict
    for name in ("loss_mask", "loss_dice"):
        assert float(logged[name]) == pytest.approx(expected[name].item(), rel=1e-3)
        print(name, float(logged[name]), expected[name].item())
    (expected["loss_mask"] + expected["loss_dice"]).backward()
    gradients = {path: np.asarray(x) for path, x in by_path(nnx.as_pure(gradient)).items()}
    wanted = _converted_gradients(model, folder, dc5)
    largest = max(np.abs(x).max() for x in wanted.values())
    for path, value in wanted.items():
        if path.startswith("mask_head/") or path in ("object_queries", "input_projection/kernel"):
            scale = max(np.abs(value).max(), 1e-4 * largest)
            error = float(np.abs(gradients[path] - value).max() / scale)
            assert error < 1e-3, (path, error)


def _converted_gradients(model, folder, dc5):
    """The gradients of torch's parameters by our path, converted as weights are."""
    with torch.no_grad():
        values = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    model.save_pretrained(folder / "gradients")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
    return read_pretrained(folder / "gradients", dilation=dc5).params


@pytest.mark.parametrize("size", [(187, 300), (800, 1066), (33, 50)])
@pytest.mark.parametrize("original", [(427, 640), (21, 37)])
def test_instance_masks_are_those_of_torch_s_interpolation(rng, size, original):
    """The original's: bilinear to the processed size, above a half, then nearest to the original size."""
    cells = tuple(-(-side // 4) for side in size)
    logits = rng.normal(size=(5, *cells)).astype(np.float32)
    padded = np.pad(logits, ((0, 0), (0, 9), (0, 14)), constant_values=7)
    found = np.array(list(ImageMasks.of(padded, size, original, 4).bitmaps()))
    up = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], size=size, mode="bilinear", align_corners=False
    )

    def nearest(x):
        return torch.nn.functional.interpolate(x, size=original, mode="nearest")[0].numpy()

    expected, close_to_half = nearest((up > 0).float()) > 0.5, nearest((up.abs() < 1e-4).float()) > 0.5
    np.testing.assert_array_equal(found[~close_to_half], expected[~close_to_half])
    assert close_to_half.mean() < 0.001
