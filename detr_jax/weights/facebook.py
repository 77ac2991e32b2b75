"""The original's checkpoints (facebookresearch/detr): detection and panoptic.

A panoptic checkpoint has the detector under ``detr.`` and a mask head next to it.
"""

from typing import Any

from detr_jax.config import MOST_ADAPTERS, NUM_PANOPTIC_LABELS
from detr_jax.data.coco_classes import COCO_CLASSES, COCO_STUFF, NUM_COCO_LABELS
from detr_jax.weights.detr_config import check_detr, infer_detr
from detr_jax.weights.files import TensorFile
from detr_jax.weights.layout import Layout
from detr_jax.weights.metadata import Metadata
from detr_jax.weights.official import is_released_dc5
from detr_jax.weights.rules import CONVOLUTION, POINTWISE, TABLE, Rule, layer_norm, linear, packed_attention
from detr_jax.weights.torchvision import resnet_rules


def transformer_rules() -> list[Rule]:
    """Rules for ``transformer.encoder.layers.0.self_attn.in_proj_weight`` ..."""
    encoder, decoder = "transformer.encoder.layers.*", "transformer.decoder.layers.*"
    our_encoder, our_decoder = "encoder/layers/*", "decoder/layers/*"
    return [
        *packed_attention(f"{encoder}.self_attn", f"{our_encoder}/self_attention"),
        *layer_norm(f"{encoder}.norm1", f"{our_encoder}/self_attention_residual/norm"),
        *linear(f"{encoder}.linear1", f"{our_encoder}/feed_forward/expand"),
        *linear(f"{encoder}.linear2", f"{our_encoder}/feed_forward/contract"),
        *layer_norm(f"{encoder}.norm2", f"{our_encoder}/feed_forward_residual/norm"),
        *layer_norm("transformer.encoder.norm", "encoder/norm"),
        *packed_attention(f"{decoder}.self_attn", f"{our_decoder}/self_attention"),
        *layer_norm(f"{decoder}.norm1", f"{our_decoder}/self_attention_residual/norm"),
        *packed_attention(f"{decoder}.multihead_attn", f"{our_decoder}/cross_attention"),
        *layer_norm(f"{decoder}.norm2", f"{our_decoder}/cross_attention_residual/norm"),
        *linear(f"{decoder}.linear1", f"{our_decoder}/feed_forward/expand"),
        *linear(f"{decoder}.linear2", f"{our_decoder}/feed_forward/contract"),
        *layer_norm(f"{decoder}.norm3", f"{our_decoder}/feed_forward_residual/norm"),
        *layer_norm("transformer.decoder.norm", "decoder/norm"),
    ]


def embedding_and_head_rules() -> list[Rule]:
    """Rules for the tensors outside of backbone and transformer."""
    return [
        *linear("input_proj", "input_projection", POINTWISE),
        Rule("query_embed.weight", ("object_queries",), TABLE),
        Rule("backbone.1.row_embed.weight", ("position_embedding/rows",), TABLE),
        Rule("backbone.1.col_embed.weight", ("position_embedding/columns",), TABLE),
        *linear("class_embed", "class_head"),
        *linear("bbox_embed.layers.*", "box_head/layers/*"),
    ]


def mask_head_rules() -> list[Rule]:
    """Rules for ``bbox_attention`` and ``mask_head``, which a panoptic model has beside the detector."""
    rules = [
        *linear("bbox_attention.q_linear", "mask_head/attention/query"),
        *linear("bbox_attention.k_linear", "mask_head/attention/key"),
        *linear("mask_head.out_lay", "mask_head/output", CONVOLUTION),
    ]
    for step in range(MOST_ADAPTERS + 2):
        rules += linear(f"mask_head.lay{step + 1}", f"mask_head/layers/{step}", CONVOLUTION)
        rules += layer_norm(f"mask_head.gn{step + 1}", f"mask_head/layers/{step}/norm")
    for step in range(MOST_ADAPTERS):
        rules += linear(f"mask_head.adapter{step + 1}", f"mask_head/adapters/{step}", CONVOLUTION)
    return rules


def read_metadata(file: TensorFile) -> Metadata:
    """Reads the command's arguments, which a training checkpoint holds, and the name of a released file."""
    metadata = Metadata()
    read_arguments(file, metadata)
    labels = next((len(x) - 1 for name, x in file.tensors.items() if name.endswith("class_embed.bias") and x.ndim), 0)
    assume_coco_classes(labels, file, metadata)
    return metadata


def read_arguments(file: TensorFile, metadata: Metadata) -> None:
    """Reads heads, dilation and backbone."""
    arguments = training_arguments(file)
    metadata.num_heads = metadata.checked_count(arguments.get("nheads"), "The arguments of its training have nheads")
    metadata.dilation = bool(arguments.get("dilation"))
    metadata.check_backbone(arguments.get("backbone"), "The arguments of its training have backbone")
    if is_released_dc5(file.source.name) and not metadata.dilation:
        metadata.dilation = True
        metadata.notes.append(f"{file.source.name} is the name of a released DC5 model, so dilation=True was taken.")


def assume_coco_classes(labels: int, file: TensorFile, metadata: Metadata) -> None:
    """Names the classes if their number is the number of labels that the original uses for COCO."""
    arguments = training_arguments(file)
    is_coco = str(arguments.get("dataset_file") or "coco").startswith("coco")
    if labels in (NUM_COCO_LABELS, NUM_PANOPTIC_LABELS) and is_coco:
        metadata.class_names = COCO_CLASSES | (COCO_STUFF if labels == NUM_PANOPTIC_LABELS else {})
        metadata.notes.append(
            f"Its {labels} classes are assumed to be COCO's raw ids, because the original uses those."
        )


def training_arguments(file: TensorFile) -> dict[str, Any]:
    """The arguments of the original's command, a Namespace in a training checkpoint. Empty if there are none."""
    args = file.extras.get("args")
    if isinstance(args, dict):
        return args
    return dict(vars(args)) if hasattr(args, "__dict__") else {}


FACEBOOK = Layout(
    kind="facebook",
    rules=(*resnet_rules("backbone.0.body."), *transformer_rules(), *embedding_and_head_rules(), *mask_head_rules()),
    spellings=((r"^detr\.", ""),),
    read_metadata=read_metadata,
    infer_config=infer_detr,
    check=check_detr,
)
"""Detectors and panoptic models of the original."""
