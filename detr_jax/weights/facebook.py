"""The original's checkpoints (facebookresearch/detr): detection, panoptic, and its detectron2 wrapper.

A panoptic checkpoint has the detector under ``detr.`` and a mask head beside it. The wrapper has everything
under ``detr.``, detectron2's names in the backbone, the class head cut to the 80 used ids, and buffers of its own.
"""

from detr_jax.weights.layout import (
    POINTWISE,
    TABLE,
    Layout,
    Rule,
    batch_norm,
    convolution,
    layer_norm,
    linear,
    packed_attention,
)
from detr_jax.weights.torchvision import CONVOLUTIONS, STAGES, resnet_rules

MASK_HEAD = r"(bbox_attention|mask_head)\..*"


def _transformer_rules() -> list[Rule]:
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


def _other_rules() -> list[Rule]:
    return [
        *linear("input_proj", "input_projection", POINTWISE),
        Rule("query_embed.weight", ("object_queries",), TABLE),
        Rule("backbone.1.row_embed.weight", ("position_embedding/rows",), TABLE),
        Rule("backbone.1.col_embed.weight", ("position_embedding/columns",), TABLE),
        *linear("class_embed", "class_head"),
        *linear("bbox_embed.layers.*", "box_head/layers/*"),
    ]


def _detectron2_backbone(prefix: str) -> list[Rule]:
    """``stem.conv1``, ``res2.0.conv1``, ``res2.0.conv1.norm``, ``res2.0.shortcut`` ... behind a prefix."""
    rules = [
        *convolution(f"{prefix}stem.conv1", "backbone/stem/conv/conv"),
        *batch_norm(f"{prefix}stem.conv1.norm", "backbone/stem/conv/norm"),
    ]
    for stage in range(STAGES):
        block, ours = f"{prefix}res{stage + 2}.*", f"backbone/stages/{stage}/*"
        for there, here in [*((f"conv{k + 1}", f"convs/{k}") for k in range(CONVOLUTIONS)), ("shortcut", "shortcut")]:
            rules += convolution(f"{block}.{there}", f"{ours}/{here}/conv")
            rules += batch_norm(f"{block}.{there}.norm", f"{ours}/{here}/norm")
    return rules


FACEBOOK = Layout(
    kind="facebook",
    rules=(*resnet_rules("backbone.0.body."), *_transformer_rules(), *_other_rules()),
    spellings=((r"^module\.", ""), (r"^detr\.", "")),
    aside=MASK_HEAD,
)

DETECTRON2 = Layout(
    kind="detectron2",
    rules=(*_detectron2_backbone("backbone.0.backbone."), *_transformer_rules(), *_other_rules()),
    spellings=((r"^(detr\.)+", ""),),
    ignored=r".*\.num_batches_tracked|pixel_mean|pixel_std|criterion\..*",
    aside=MASK_HEAD,
    contiguous_coco=True,
)
