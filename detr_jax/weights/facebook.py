"""The original's checkpoints (facebookresearch/detr): detection and panoptic.

A panoptic checkpoint has the detector under ``detr.`` and a mask head beside it.
"""

from typing import Any

from detr_jax.data.coco_classes import COCO_CLASSES, NUM_COCO_LABELS
from detr_jax.weights.facts import Facts
from detr_jax.weights.files import TensorFile
from detr_jax.weights.layout import POINTWISE, TABLE, Layout, Rule, layer_norm, linear, packed_attention
from detr_jax.weights.official import by_file_name
from detr_jax.weights.torchvision import resnet_rules

MASK_HEAD = r"(bbox_attention|mask_head)\..*"


def transformer_rules() -> list[Rule]:
    encoder, decoder = "transformer.encoder.layers.*", "transformer.decoder.layers.*"
    ours_encoder, ours_decoder = "encoder/layers/*", "decoder/layers/*"
    return [
        *packed_attention(f"{encoder}.self_attn", f"{ours_encoder}/self_attention"),
        *layer_norm(f"{encoder}.norm1", f"{ours_encoder}/self_attention_residual/norm"),
        *linear(f"{encoder}.linear1", f"{ours_encoder}/feed_forward/expand"),
        *linear(f"{encoder}.linear2", f"{ours_encoder}/feed_forward/contract"),
        *layer_norm(f"{encoder}.norm2", f"{ours_encoder}/feed_forward_residual/norm"),
        *layer_norm("transformer.encoder.norm", "encoder/norm"),
        *packed_attention(f"{decoder}.self_attn", f"{ours_decoder}/self_attention"),
        *layer_norm(f"{decoder}.norm1", f"{ours_decoder}/self_attention_residual/norm"),
        *packed_attention(f"{decoder}.multihead_attn", f"{ours_decoder}/cross_attention"),
        *layer_norm(f"{decoder}.norm2", f"{ours_decoder}/cross_attention_residual/norm"),
        *linear(f"{decoder}.linear1", f"{ours_decoder}/feed_forward/expand"),
        *linear(f"{decoder}.linear2", f"{ours_decoder}/feed_forward/contract"),
        *layer_norm(f"{decoder}.norm3", f"{ours_decoder}/feed_forward_residual/norm"),
        *layer_norm("transformer.decoder.norm", "decoder/norm"),
    ]


def other_rules() -> list[Rule]:
    return [
        *linear("input_proj", "input_projection", POINTWISE),
        Rule("query_embed.weight", ("object_queries",), TABLE),
        Rule("backbone.1.row_embed.weight", ("position_embedding/rows",), TABLE),
        Rule("backbone.1.col_embed.weight", ("position_embedding/columns",), TABLE),
        *linear("class_embed", "class_head"),
        *linear("bbox_embed.layers.*", "box_head/layers/*"),
    ]


FACEBOOK = Layout(
    kind="facebook",
    rules=(*resnet_rules("backbone.0.body."), *transformer_rules(), *other_rules()),
    spellings=((r"^detr\.", ""),),
    aside=MASK_HEAD,
)

_PANOPTIC_LABELS = 250


def facts(file: TensorFile) -> Facts:
    """What the arguments of the training command say, which are in its checkpoints, or the released file's name."""
    found = Facts()
    arguments = _arguments(file.metadata.get("args"))
    found.num_heads = found.count(arguments.get("nheads"), "The arguments of its training have nheads")
    found.dilation = bool(arguments.get("dilation"))
    found.check_backbone(arguments.get("backbone"), "The arguments of its training have backbone")
    released = by_file_name(file.source.name)
    if released and released.dilation and not found.dilation:
        found.dilation = True
        found.notes.append(f"{file.source.name} is the name of a released DC5 model, so dilation=True was taken.")
    labels = next((len(x) - 1 for name, x in file.tensors.items() if name.endswith("class_embed.bias") and x.ndim), 0)
    if labels in (NUM_COCO_LABELS, _PANOPTIC_LABELS) and str(arguments.get("dataset_file") or "coco").startswith(
        "coco"
    ):
        found.class_names = dict(COCO_CLASSES)
        found.notes.append(f"Its {labels} classes are taken for COCO's raw ids, as the original's are.")
    return found


def _arguments(args: Any) -> dict[str, Any]:
    """The arguments of the original's command, a Namespace; empty if there are none."""
    if isinstance(args, dict):
        return args
    return dict(vars(args)) if hasattr(args, "__dict__") else {}
