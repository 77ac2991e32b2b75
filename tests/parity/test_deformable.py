"""Logits, boxes and proposals against transformers' Deformable DETR with the same random weights."""

import copy
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

from detr_jax.weights import load_pretrained
from tests.parity.torch_models import SMALL, dilate_last_stage, randomise

TOLERANCE = 1e-4
SIZES = ((187, 300), (224, 203))  # (height, width); neither is a multiple of 64
BUCKET = (256, 320)
QUERIES = 12


class Variant(NamedTuple):
    """A model, and how its file is written."""

    levels: int
    refined: bool = False
    two_stage: bool = False
    dc5: bool = False
    own_heads: bool = False
    """The class heads of the layers differ. transformers 5 ties those of new models, but loads files that differ."""
    width: int = 64


VARIANTS = {
    "single": Variant(1),
    "single-dc5": Variant(1, dc5=True),
    "multi": Variant(4),
    "multi-wide": Variant(4, width=256),
    "five-levels": Variant(5),
    "refined": Variant(4, refined=True),
    "refined-own-heads": Variant(4, refined=True, own_heads=True),
    "two-stage": Variant(4, refined=True, two_stage=True),
    "two-stage-own-heads": Variant(4, refined=True, two_stage=True, own_heads=True),
}


def random_deformable(rng: np.random.Generator, variant: Variant) -> DeformableDetrForObjectDetection:
    """A detector of transformers in inference mode, with random weights that tell queries and layers apart."""
    torch.manual_seed(int(rng.integers(2**31)))
    stages = ["stage2", "stage3", "stage4"] if variant.levels > 1 else ["stage4"]
    config = DeformableDetrConfig(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(**SMALL, out_features=stages),
        d_model=variant.width,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_n_points=3,
        decoder_n_points=3,
        num_queries=QUERIES,
        two_stage_num_proposals=QUERIES,
        num_feature_levels=variant.levels,
        with_box_refine=variant.refined,
        two_stage=variant.two_stage,
        num_labels=6,
        dropout=0.0,
        auxiliary_loss=True,
        disable_custom_kernels=True,
    )
    model = DeformableDetrForObjectDetection(config).eval()
    if variant.own_heads:
        model.class_embed = torch.nn.ModuleList(copy.deepcopy(head) for head in model.class_embed)
        if variant.two_stage:
            model.model.decoder.class_embed = model.class_embed
    if variant.dc5:
        dilate_last_stage(model)
    randomise(model, model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sampling_offsets.bias" in name:
                parameter.uniform_(-3, 3)
            elif "input_proj" in name and name.endswith("1.weight"):
                parameter.uniform_(0.5, 1.5)
            elif "level_embed" in name:
                parameter.normal_(0, 1)
    return model


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """transformers' model, a folder with its weights, and the variant."""
    variant = VARIANTS[request.param]
    seed = int(np.random.default_rng().integers(2**31))
    print(f"{request.param}: seed {seed}")
    model = random_deformable(np.random.default_rng(seed), variant)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    if variant.own_heads:  # as transformers 4 writes them, with every name
        state = {name: value.clone() for name, value in model.state_dict().items()}
        save_file(state, folder / "model.safetensors")
    return model, folder, variant


@torch.no_grad()
def reference_outputs(model, images, sizes):
    """Logits and boxes of every decoder layer, [L, B, Q, ...], and of the proposals, [B, S, ...]."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    mask = torch.zeros(len(images), *images.shape[1:3], dtype=torch.long)
    for place, (height, width) in zip(mask, sizes, strict=True):
        place[:height, :width] = 1
    label = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    out = model(pixels, pixel_mask=mask, labels=[label] * len(images))
    layers = [*out.auxiliary_outputs, {"logits": out.logits, "pred_boxes": out.pred_boxes}]
    found = {
        "logits": torch.stack([layer["logits"] for layer in layers]),
        "boxes": torch.stack([layer["pred_boxes"] for layer in layers]),
    }
    if out.enc_outputs_class is not None:
        found["proposed_logits"] = out.enc_outputs_class
        found["proposed_boxes"] = out.enc_outputs_coord_logits.sigmoid()
    return {name: value.numpy() for name, value in found.items()}


def our_outputs(model, images, sizes):
    """The same of our model."""
    found = jax.jit(lambda images, sizes: model(images, sizes))(jnp.asarray(images), jnp.asarray(sizes))
    result = {"logits": found.layers.logits, "boxes": found.layers.boxes}
    if found.proposals is not None:
        result |= {"proposed_logits": found.proposals.logits[0], "proposed_boxes": found.proposals.boxes[0]}
    return {name: np.asarray(value) for name, value in result.items()}


def padded(images, bucket):
    """Images [h, w, 3] at the top left of buckets [B, H, W, 3] of zeros."""
    batch = np.zeros((len(images), *bucket, 3), np.float32)
    for place, image in zip(batch, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return batch


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
