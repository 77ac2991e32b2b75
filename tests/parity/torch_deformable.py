"""Deformable DETR of transformers with random weights, as the live reference."""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

from tests.parity.torch_models import SMALL, decide, dilate_last_stage, randomise

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
    decided: bool = False
    """Each ReLU is nearly always on or nearly always off, and class heads start with small probabilities: see
    `decide`."""


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
    if variant.two_stage:
        prefer_proposals(model)
    if variant.decided:
        decide_deformable(model)
    return model


@torch.no_grad()
def prefer_proposals(model: DeformableDetrForObjectDetection) -> None:
    """Gives tokens that propose nothing a low score. They are all equal, and so would be queries that start from them.

    Their features are z, so the component of the head's weights along z makes their score.
    """
    head = model.model.decoder.class_embed[-1]
    z = model.model.enc_output_norm(model.model.enc_output(torch.zeros(model.config.d_model)))
    weight = head.weight[0]
    weight -= (weight @ z + 3) / (z @ z) * z


@torch.no_grad()
def decide_deformable(model: DeformableDetrForObjectDetection) -> None:
    """`decide`, with class heads under which the many tokens of the encoder do not make up the whole loss."""
    box_heads = distinct(model.model.decoder.bbox_embed or model.bbox_embed)  # those that are called first
    class_heads = distinct(model.class_embed)
    # the scores of the proposals stay as they are: close ones would be chosen by rounding
    decide(model, box_heads=box_heads, class_heads=class_heads[: -1 if model.config.two_stage else None])
    for head in class_heads:
        head.bias.sub_(2)


def distinct(modules: Iterable[torch.nn.Module]) -> list[torch.nn.Module]:
    """Those that do not share their parameters with an earlier one."""
    by_parameter: dict[int, torch.nn.Module] = {}
    for module in modules:
        by_parameter.setdefault(id(next(module.parameters())), module)
    return list(by_parameter.values())


def save_with_every_name(model: DeformableDetrForObjectDetection, folder: Path, variant: Variant) -> None:
    """Saves a model. transformers 5 stores only one class head, so own heads are written as transformers 4 does."""
    model.save_pretrained(folder)
    if variant.own_heads:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        save_file(state, folder / "model.safetensors")


class LayerOutputs(NamedTuple):
    """What a set of heads answers. ``L`` decoder layers, or one if the encoder answers; ``N`` queries or tokens."""

    logits: torch.Tensor
    """[L, B, N, classes]."""
    boxes: torch.Tensor
    """[L, B, N, 4] cxcywh in 0..1."""


def layer_outputs(
    model: DeformableDetrForObjectDetection, pixels: torch.Tensor, mask: torch.Tensor
) -> tuple[LayerOutputs, LayerOutputs | None]:
    """The outputs of every decoder layer, and if there are any the proposals of all tokens."""
    # transformers returns the layers before the last only together with its own loss, which any label will do for
    label = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]], dtype=pixels.dtype)}
    out = model(pixels, pixel_mask=mask, labels=[label] * len(pixels))
    layers = [*out.auxiliary_outputs, {"logits": out.logits, "pred_boxes": out.pred_boxes}]
    decoded = LayerOutputs(*(torch.stack([layer[name] for layer in layers]) for name in ("logits", "pred_boxes")))
    if out.enc_outputs_class is None:
        return decoded, None
    return decoded, LayerOutputs(out.enc_outputs_class[None], out.enc_outputs_coord_logits.sigmoid()[None])
