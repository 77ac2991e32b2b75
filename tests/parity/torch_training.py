"""The original's loss, matching and optimiser in torch, written from the paper's formulas for the comparison."""

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from transformers import DetrForObjectDetection

from tests.parity.torch_deformable import layer_outputs


def freeze_as_the_original(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Trains everything but stem, first stage and batch norms; returns what is trained, by name.

    transformers itself freezes the whole of its own ResNet.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("backbone.model.embedder" not in name and "encoder.stages.0." not in name)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def all_layers(model: DetrForObjectDetection, pixels: torch.Tensor, mask: torch.Tensor) -> list[tuple]:
    """Logits and boxes of every decoder layer: the shared norm on each output, un-normed outputs passed on."""
    outputs: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for layer in model.model.decoder.layers
    ]
    model(pixels, pixel_mask=mask)
    for hook in hooks:
        hook.remove()
    normed = [model.model.decoder.layernorm(output) for output in outputs]
    return [(model.class_labels_classifier(x), model.bbox_predictor(x).sigmoid()) for x in normed]


def corners(boxes: torch.Tensor) -> torch.Tensor:
    """cxcywh to xyxy."""
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([center - size / 2, center + size / 2], -1)


def giou_of_pairs(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Generalised IoU (Rezatofighi et al., 2019) of every box [N, 4] with every box [M, 4], xyxy: [N, M]."""
    a, b = a[:, None], b[None]
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - overlap
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return overlap / union - (hull - union) / hull


def layer_loss(logits: torch.Tensor, boxes: torch.Tensor, targets: list[dict]) -> torch.Tensor:
    """1 * CE + 5 * L1 + 2 * (1 - GIoU) of one decoder layer, matched by 1 * -p + 5 * L1 - 2 * GIoU."""
    num_boxes = max(sum(len(target["labels"]) for target in targets), 1)
    no_object = logits.shape[-1] - 1
    classes = torch.full(logits.shape[:2], no_object)
    l1 = giou = torch.zeros(())
    for i, target in enumerate(targets):
        with torch.no_grad():
            cost = (
                -logits[i].softmax(-1)[:, target["labels"]]
                + 5 * torch.cdist(boxes[i], target["boxes"], p=1)
                - 2 * giou_of_pairs(corners(boxes[i]), corners(target["boxes"]))
            )
        queries, columns = map(torch.as_tensor, linear_sum_assignment(cost.numpy()))
        classes[i, queries] = target["labels"][columns]
        found, wanted = boxes[i, queries], target["boxes"][columns]
        l1 = l1 + (found - wanted).abs().sum()
        giou = giou + (1 - giou_of_pairs(corners(found), corners(wanted)).diagonal()).sum()
    weight = torch.ones(no_object + 1, dtype=logits.dtype)
    weight[no_object] = 0.1
    ce = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), weight)
    return ce + 5 * l1 / num_boxes + 2 * giou / num_boxes


def total_loss(model: DetrForObjectDetection, pixels: torch.Tensor, mask: torch.Tensor, targets: list[dict]):
    """The sum over all decoder layers."""
    return sum(layer_loss(*layer, targets) for layer in all_layers(model, pixels, mask))


def focal_cost(logits: torch.Tensor) -> torch.Tensor:
    """What it costs to make each class a target instead of none, with alpha 0.25 and gamma 2."""
    p = logits.sigmoid()
    as_target = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
    as_none = 0.75 * p**2 * -(1 - p + 1e-8).log()
    return as_target - as_none


def focal_loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The sum of alpha_t * (1 - p_t)^2 * cross-entropy over all elements; ``wanted`` is 0 or 1."""
    p = logits.sigmoid()
    p_wanted = p * wanted + (1 - p) * (1 - wanted)
    alpha = 0.25 * wanted + 0.75 * (1 - wanted)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return (alpha * (1 - p_wanted) ** 2 * cross_entropy).sum()


def focal_layer_loss(logits: torch.Tensor, boxes: torch.Tensor, targets: list[dict]) -> torch.Tensor:
    """2 * focal + 5 * L1 + 2 * (1 - GIoU) of one set of predictions [B, N, ...], matched by the same weights."""
    num_boxes = max(sum(len(target["labels"]) for target in targets), 1)
    wanted_classes = torch.zeros_like(logits)
    l1 = giou = torch.zeros(())
    for i, target in enumerate(targets):
        with torch.no_grad():
            cost = (
                2 * focal_cost(logits[i])[:, target["labels"]]
                + 5 * torch.cdist(boxes[i], target["boxes"], p=1)
                - 2 * giou_of_pairs(corners(boxes[i]), corners(target["boxes"]))
            )
        queries, columns = map(torch.as_tensor, linear_sum_assignment(cost.numpy()))
        wanted_classes[i, queries, target["labels"][columns]] = 1
        found, wanted = boxes[i, queries], target["boxes"][columns]
        l1 = l1 + (found - wanted).abs().sum()
        giou = giou + (1 - giou_of_pairs(corners(found), corners(wanted)).diagonal()).sum()
    return (2 * focal_loss(logits, wanted_classes) + 5 * l1 + 2 * giou) / num_boxes


def total_focal_loss(model: torch.nn.Module, pixels: torch.Tensor, mask: torch.Tensor, targets: list[dict]):
    """The sum over all decoder layers of a Deformable DETR, and over its proposals, whose only class is 0.

    transformers itself leaves out the loss of the proposals, and gives the focal loss the weight 1.
    """
    layers, proposals = layer_outputs(model, pixels, mask)
    total = sum(focal_layer_loss(*layer, targets) for layer in zip(*layers, strict=True))
    if proposals is None:
        return total
    objects = [{**target, "labels": torch.zeros_like(target["labels"])} for target in targets]
    return total + sum(focal_layer_loss(*layer, objects) for layer in zip(*proposals, strict=True))
