"""DETR models of transformers with random weights and random batch-norm statistics, as the live reference."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from transformers import DetrConfig, DetrForObjectDetection, DetrForSegmentation, ResNetConfig

RESNETS = {
    18: {"layer_type": "basic", "depths": (2, 2, 2, 2), "hidden_sizes": (64, 128, 256, 512)},
    50: {"layer_type": "bottleneck", "depths": (3, 4, 6, 3), "hidden_sizes": (256, 512, 1024, 2048)},
    101: {"layer_type": "bottleneck", "depths": (3, 4, 23, 3), "hidden_sizes": (256, 512, 1024, 2048)},
}
SMALL = {
    "layer_type": "bottleneck",
    "depths": (1, 2, 1, 2),
    "hidden_sizes": (32, 64, 128, 256),
    "embedding_size": 8,
}
SMALL_BASIC = {"layer_type": "basic", "depths": (1, 2, 1, 2), "hidden_sizes": (8, 16, 32, 64), "embedding_size": 8}
SMALL_TRANSFORMER = {
    "d_model": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "num_queries": 9,
    "num_labels": 6,
}


def random_detr(
    rng: np.random.Generator, resnet: dict, *, dc5: bool = False, decided: bool = False, **fields
) -> DetrForObjectDetection:
    """A detector of transformers in inference mode, without dropout, and with `auxiliary_loss` off.

    With ``decided``, each channel of the backbone is nearly always on or nearly always off: see `decide`.
    """
    torch.manual_seed(int(rng.integers(2**31)))
    config = DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(**resnet, out_features=["stage4"]),
        **{"num_labels": 91, "auxiliary_loss": False, "dropout": 0.0, **fields},
    )
    config._attn_implementation = "eager"
    model = DetrForObjectDetection(config).eval()
    if dc5:
        dilate_last_stage(model)
    randomise(model, model)
    if decided:
        decide(model, box_heads=[model.bbox_predictor], class_heads=[model.class_labels_classifier])
    return model


def random_segmentation(rng: np.random.Generator, resnet: dict, *, dc5: bool = False, **fields) -> DetrForSegmentation:
    """A detector with a mask head of transformers in inference mode, without dropout."""
    torch.manual_seed(int(rng.integers(2**31)))
    config = DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(**resnet, out_features=["stage1", "stage2", "stage3", "stage4"]),
        **{"num_labels": 250, "auxiliary_loss": False, "dropout": 0.0, **fields},
    )
    config._attn_implementation = "eager"
    model = DetrForSegmentation(config).eval()
    if dc5:
        dilate_last_stage(model.detr)
    randomise(model, model)
    return model


def dilate_last_stage(model: DetrForObjectDetection) -> None:
    """DC5 as torchvision makes it: no stride, and all 3x3 convolutions but the first block's dilated by 2."""
    first, *others = model.model.backbone.model.encoder.stages[-1].layers
    first.layer[1].convolution.stride = first.shortcut.convolution.stride = (1, 1)
    for block in others:
        block.layer[1].convolution.dilation = block.layer[1].convolution.padding = (2, 2)


@torch.no_grad()
def randomise(model: torch.nn.Module, run: Callable[[torch.Tensor], object]) -> None:
    """Values under which every tensor matters and activations stay of order one.

    A fresh model answers alike for all queries, and its batch norms do nothing. Here the statistics of a batch norm
    are those of its input on a random image, changed at random by up to a factor of two: purely random ones would
    let a deep network's activations grow until an absolute tolerance means nothing. Residual branches are kept
    smaller than what they are added to, and no channel's variance is near zero, as in a trained network; otherwise
    each block would magnify rounding errors, and torch in float32 would differ from torch in float64 by more than
    the tolerance.

    Args:
      model: a detector of transformers or mmdetection.
      run: runs it on images [1, 3, H, W].
    """
    for name, parameter in model.named_parameters():
        if "backbone" in name and "position" not in name:
            continue  # convolutions keep their Kaiming start; norms follow below
        if "norm" in name and name.endswith("weight"):
            parameter.uniform_(0.5, 1.5)
        elif parameter.ndim == 1:
            parameter.normal_(0, 0.1)
        elif "embedding" in name:
            parameter.normal_(0, 1)
        else:
            parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()))

    def fit(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...], *, gain: tuple[float, float]) -> None:
        fit_statistics(norm, inputs)
        norm.weight.uniform_(*gain)
        norm.bias.normal_(0, 0.1)

    hooks = []
    for name, module in model.named_modules():
        if hasattr(module, "running_mean"):
            carries_on = "shortcut" in name or "downsample" in name or "layer" not in name  # else: a residual branch
            hooks.append(module.register_forward_pre_hook(partial(fit, gain=(0.3, 0.8) if carries_on else (0.05, 0.2))))
    run(torch.randn(1, 3, 160, 192))
    for hook in hooks:
        hook.remove()


def fit_statistics(norm: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Statistics of a norm near those of its input."""
    mean, variance = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3))
    variance = variance + 0.3 * inputs[0].square().mean()
    norm.running_mean.copy_(mean + variance.sqrt() * torch.randn_like(mean) * 0.3)
    norm.running_var.copy_(variance * torch.empty_like(mean).uniform_(0.5, 2))


@torch.no_grad()
def decide(
    model: torch.nn.Module, *, box_heads: Sequence[torch.nn.Module], class_heads: Sequence[torch.nn.Linear]
) -> None:
    """Moves the input of every ReLU several deviations away from zero, up or down by channel, and calms the heads.

    A ReLU whose input is within rounding of zero has one gradient here and another there. In a deep random network
    some always are, and torch in float32 then differs from torch in float64 by some 2e-3 of an early convolution's
    gradient; one of them behind the decoder's attention changes what little gradient reaches its queries by a tenth.
    With large random heads, a dozen steps halve the loss, and the two end 1% apart. As it is here both agree, and a
    comparison measures the formulas.

    Args:
      model: a detector of transformers.
      box_heads: those with parameters of their own.
      class_heads: those to calm.
    """

    def move(norm: torch.nn.Module, sign: torch.Tensor) -> None:
        norm.bias.copy_(sign * norm.weight * torch.empty_like(norm.bias).uniform_(4, 6))

    def signs(norm: torch.nn.Module) -> torch.Tensor:
        return torch.sign(torch.randn_like(norm.bias))

    backbone = model.model.backbone.model
    move(backbone.embedder.embedder.normalization, signs(backbone.embedder.embedder.normalization))
    for stage in backbone.encoder.stages:
        stage_signs = signs(stage.layers[0].layer[-1].normalization)  # of all that is added up along the stage
        for block in stage.layers:
            *inner, last = (conv.normalization for conv in block.layer)
            for norm in inner:
                move(norm, signs(norm))
            move(last, stage_signs)
            if hasattr(block.shortcut, "normalization"):
                move(block.shortcut.normalization, stage_signs)

    def move_linear(linear: torch.nn.Linear, _: object, output: torch.Tensor) -> torch.Tensor:
        rows = output.flatten(0, -2)
        mean, spread = rows.mean(0), rows.std(0) + rows.mean(0).abs()  # other layers' inputs have other means
        shift = torch.sign(torch.randn_like(mean)) * spread * torch.empty_like(mean).uniform_(4, 6) - mean
        linear.bias.add_(shift)
        return output + shift

    rectified = [layer.mlp.fc1 for coder in (model.model.encoder, model.model.decoder) for layer in coder.layers]
    rectified += [linear for head in box_heads for linear in head.layers[:-1]]
    hooks = [linear.register_forward_hook(move_linear) for linear in rectified] + [
        norm.register_forward_pre_hook(fit_statistics) for norm in model.modules() if hasattr(norm, "running_mean")
    ]
    model(torch.randn(1, 3, 160, 192))  # what moved a norm's output moved the next one's input
    for hook in hooks:
        hook.remove()
    for head in (*class_heads, *(head.layers[-1] for head in box_heads)):
        head.weight.mul_(0.1)


@torch.no_grad()
def reference_outputs(model: DetrForObjectDetection, images: np.ndarray, sizes) -> dict[str, np.ndarray]:
    """What the model makes of normalised images [B, H, W, 3] with valid sizes [B, 2] (height, width).

    Returns:
      ``features`` [B, h, w, C] of the last stage, ``memory`` [B, h, w, D] of the encoder, ``logits`` and ``boxes`` of
      the last decoder layer.
    """
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    mask = torch.zeros(len(images), *images.shape[1:3], dtype=torch.long)
    for place, (height, width) in zip(mask, sizes, strict=True):
        place[:height, :width] = 1
    features = model.model.backbone(pixels, mask)[-1][0].permute(0, 2, 3, 1).numpy()
    out = model(pixels, pixel_mask=mask)
    memory = out.encoder_last_hidden_state.numpy().reshape(*features.shape[:3], -1)
    return {"features": features, "memory": memory, "logits": out.logits.numpy(), "boxes": out.pred_boxes.numpy()}


def padded(images, bucket):
    """Images [h, w, 3] at the top left of buckets [B, H, W, 3] of zeros."""
    batch = np.zeros((len(images), *bucket, 3), np.float32)
    for place, image in zip(batch, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return batch
