"""Checkpoints of the original Deformable DETR (fundamentalvision/Deformable-DETR), and what all its layouts share.

Without iterative box refinement, all decoder layers have the same heads, and files store them once per layer. With it,
each layer has its own heads, and files store some of them under two names. So there are two layouts per framework.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from detr_jax.config import DeformableDETRConfig, DeformableTransformerConfig, DetectorConfig
from detr_jax.weights.detr_config import check_resnet, common_size, infer_resnet, layer_count
from detr_jax.weights.facebook import assume_coco_classes, read_arguments, training_arguments
from detr_jax.weights.files import TensorFile
from detr_jax.weights.layout import Layout, Options, Shapes
from detr_jax.weights.metadata import Metadata
from detr_jax.weights.rules import (
    CONVOLUTION,
    SPLIT_TABLE,
    TABLE,
    Rule,
    layer_norm,
    linear,
    packed_attention,
    tied,
)
from detr_jax.weights.torchvision import resnet_rules

MARK = "sampling_offsets"
"""Part of the names of every checkpoint of Deformable DETR."""

BACKBONE_LEVELS, EXTRA_LEVELS = 3, 5
"""Levels of the backbone in a multi-scale model, and more extra levels than any model has."""


def deformable_attention(name: str, path: str) -> list[Rule]:
    """Rules of a deformable attention. All frameworks use the same four names."""
    parts = {
        "sampling_offsets": "sampling_offsets",
        "attention_weights": "attention_weights",
        "value_proj": "value",
        "output_proj": "output",
    }
    return [rule for stored, ours in parts.items() for rule in linear(f"{name}.{stored}", f"{path}/{ours}")]


def pyramid_rules(prefix: str) -> list[Rule]:
    """Rules for ``input_proj.0.0`` (a convolution), ``input_proj.0.1`` (its norm) ... behind a prefix."""
    rules: list[Rule] = []
    for level in range(BACKBONE_LEVELS + EXTRA_LEVELS):
        extra = level - BACKBONE_LEVELS
        ours = f"pyramid/projections/{level}" if extra < 0 else f"pyramid/extra/{extra}"
        rules += linear(f"{prefix}input_proj.{level}.0", ours, CONVOLUTION)
        rules += layer_norm(f"{prefix}input_proj.{level}.1", f"{ours}/norm")
    return rules


def table_rules(prefix: str, queries: str) -> list[Rule]:
    """Rules of the level embedding (behind a prefix) and of the learned queries: positions, then contents."""
    return [
        Rule(f"{prefix}level_embed", ("pyramid/level_embedding",), TABLE),
        Rule(f"{queries}.weight", ("queries/position", "queries/content"), SPLIT_TABLE),
    ]


def start_rules(reference: str, memory: str, memory_norm: str, query: str, query_norm: str) -> list[Rule]:
    """Rules of the reference points of learned queries, and of the layers that turn proposals into queries."""
    return [
        *linear(reference, "queries/reference"),
        *linear(memory, "proposer/memory_projection"),
        *layer_norm(memory_norm, "proposer/memory_norm"),
        *linear(query, "proposer/query_projection"),
        *layer_norm(query_norm, "proposer/query_norm"),
    ]


def head_rules(classes: Sequence[str], boxes: Sequence[str], box_layers: Sequence[str], *, refined: bool) -> list[Rule]:
    """Rules of the heads.

    Args:
      classes: names under which class heads are stored, without their numbers.
      boxes: likewise for box heads.
      box_layers: the names of a box head's three layers.
      refined: every decoder layer has its own heads. Otherwise, all numbers are the same head.
    """
    number = "*" if refined else "0"
    rules: list[Rule] = []
    for name in classes:
        rules += linear(f"{name}.*", f"class_head/{number}")
    for name in boxes:
        for i, layer in enumerate(box_layers):
            rules += linear(f"{name}.*.{layer}", f"box_head/{number}/layers/{i}")
    return tied(rules)


def infer_deformable(shapes: Shapes, metadata: Metadata, options: Options, *, refined: bool) -> DeformableDETRConfig:
    """`Layout.infer_config` for a Deformable DETR."""
    return DeformableDETRConfig(
        **common_fields(shapes, metadata, options),
        num_queries=common_size(
            shapes, r"queries/(position|content)", axis=0, default=metadata.num_queries or _default_queries()
        ),
        refine_boxes=refined,
        two_stage=any(path.startswith("proposer/") for path in shapes),
    )


def common_fields(shapes: Shapes, metadata: Metadata, options: Options) -> dict[str, Any]:
    """The fields that Deformable DETR and DINO infer alike. The metadata's numbers of layers count more than the
    tensors'."""
    backbone_levels = max(1, layer_count(shapes, r"pyramid/projections/(\d+)/"))
    extra_levels = layer_count(shapes, r"pyramid/extra/(\d+)/")
    decoder_layers = max(1, layer_count(shapes, r"decoder/layers/(\d+)/"))
    heads = options.num_heads or metadata.num_heads or DeformableDETRConfig().num_heads
    return {
        "backbone": infer_resnet(shapes, dilation=options.dilation or metadata.dilation),
        "num_classes": common_size(shapes, r"class_head/.*", axis=-1, default=91),
        "hidden_dim": common_size(shapes, r".*coder/.*norm/(scale|bias)", axis=-1, default=256),
        "num_heads": heads,
        "encoder_layers": metadata.encoder_layers or layer_count(shapes, r"encoder/layers/(\d+)/"),
        "decoder_layers": metadata.decoder_layers or decoder_layers,
        "feedforward_dim": common_size(shapes, r".*coder/layers/\d+/feed_forward/expand/.*", axis=-1, default=1024),
        "backbone_levels": backbone_levels,
        "extra_levels": extra_levels,
        "num_points": _infer_points(shapes, heads * (backbone_levels + extra_levels), metadata),
        "mask_padding": options.mask_padding,
    }


def _default_queries() -> int:
    return DeformableDETRConfig().num_queries


def _infer_points(shapes: Shapes, groups: int, metadata: Metadata) -> int:
    """Points of a head in each level. A number that does not fit the metadata becomes one of its faults."""
    weights = common_size(shapes, r".*_attention/attention_weights/.*", axis=-1, default=4 * groups)
    points, rest = divmod(weights, groups)
    if rest or metadata.num_points not in (None, points):
        stated = "" if metadata.num_points is None else f" with {metadata.num_points} points each"
        metadata.faults.append(
            f"Its attentions sample {weights} points per query, which does not fit {groups} pairs of head and level"
            f"{stated}: give num_heads."
        )
    return max(1, points)


def check_deformable(config: DetectorConfig) -> Iterator[str]:
    """`Layout.check` for a Deformable DETR or a DINO."""
    assert isinstance(config, DeformableTransformerConfig)
    if config.hidden_dim % config.num_heads:
        yield f"Its width of {config.hidden_dim} cannot be split into {config.num_heads} heads: give num_heads."
    if config.hidden_dim % 32:
        yield f"Its width of {config.hidden_dim} is not a multiple of 32, the groups of its group norms."
    if isinstance(config, DeformableDETRConfig) and config.two_stage and not config.refine_boxes:
        yield "It has two stages without iterative box refinement, which no framework can compute."
    if config.backbone_levels > len(config.backbone.strides):
        yield f"It reads {config.backbone_levels} levels, and its backbone has {len(config.backbone.strides)}."
    yield from check_resnet(config)


def check_variant(file: TensorFile, metadata: Metadata, where: str, **stated: tuple[Any, bool]) -> None:
    """Compares settings that are stated in the files with what the tensors show.

    Args:
      file: the checkpoint.
      metadata: gets a fault for each setting that is not what the tensors show.
      where: subject of the fault.
      stated: the stated value, None if unknown, and the tensors' value, by the setting's name.
    """
    for name, (value, shown) in stated.items():
        if value is not None and bool(value) != shown:
            metadata.faults.append(f"{where} {name}={value}, and the tensors of {file.source.name} show {shown}.")


def has_decoder_heads(file: TensorFile) -> bool:
    """Whether the decoder has box heads, so that every layer refines the boxes of the layer before."""
    return any("decoder.bbox_embed." in name for name in file.tensors)


def has_proposals(file: TensorFile) -> bool:
    """Whether the encoder proposes the queries."""
    return any("pos_trans" in name for name in file.tensors)


def note_queries(file: TensorFile, metadata: Metadata) -> None:
    """Notes the number of queries that is assumed for a model with two stages if the files do not state it."""
    if has_proposals(file) and metadata.num_queries is None:
        metadata.notes.append(
            f"It has two stages, and its files do not give the number of object queries: {_default_queries()} are "
            "assumed."
        )


def read_metadata(file: TensorFile) -> Metadata:
    """Reads the command's arguments, which a training checkpoint holds, and the name of a released file."""
    metadata = Metadata()
    read_arguments(file, metadata)
    where = "The arguments of its training have"
    arguments = training_arguments(file)
    metadata.num_points = metadata.checked_count(arguments.get("dec_n_points"), f"{where} dec_n_points")
    metadata.num_queries = metadata.checked_count(arguments.get("num_queries"), f"{where} num_queries")
    if arguments.get("position_embedding", "sine") not in ("sine", "v2"):
        metadata.faults.append(
            f"{where} position_embedding={arguments['position_embedding']!r}, and only 'sine' is modelled."
        )
    check_variant(
        file,
        metadata,
        where,
        with_box_refine=(arguments.get("with_box_refine"), has_decoder_heads(file)),
        two_stage=(arguments.get("two_stage"), has_proposals(file)),
    )
    note_queries(file, metadata)
    labels = next((len(x) for name, x in file.tensors.items() if name.endswith("class_embed.0.bias") and x.ndim), 0)
    assume_coco_classes(labels, file, metadata)
    return metadata


def _layer_rules() -> list[Rule]:
    """Rules of the layers. The norms of a decoder layer are numbered against the order of their use."""
    encoder, decoder = "transformer.encoder.layers.*", "transformer.decoder.layers.*"
    our_encoder, our_decoder = "encoder/layers/*", "decoder/layers/*"
    return [
        *deformable_attention(f"{encoder}.self_attn", f"{our_encoder}/self_attention"),
        *layer_norm(f"{encoder}.norm1", f"{our_encoder}/self_attention_residual/norm"),
        *linear(f"{encoder}.linear1", f"{our_encoder}/feed_forward/expand"),
        *linear(f"{encoder}.linear2", f"{our_encoder}/feed_forward/contract"),
        *layer_norm(f"{encoder}.norm2", f"{our_encoder}/feed_forward_residual/norm"),
        *packed_attention(f"{decoder}.self_attn", f"{our_decoder}/self_attention"),
        *layer_norm(f"{decoder}.norm2", f"{our_decoder}/self_attention_residual/norm"),
        *deformable_attention(f"{decoder}.cross_attn", f"{our_decoder}/cross_attention"),
        *layer_norm(f"{decoder}.norm1", f"{our_decoder}/cross_attention_residual/norm"),
        *linear(f"{decoder}.linear1", f"{our_decoder}/feed_forward/expand"),
        *linear(f"{decoder}.linear2", f"{our_decoder}/feed_forward/contract"),
        *layer_norm(f"{decoder}.norm3", f"{our_decoder}/feed_forward_residual/norm"),
    ]


def _layout(*, refined: bool) -> Layout:
    return Layout(
        kind="fundamentalvision",
        rules=(
            *resnet_rules("backbone.0.body."),
            *pyramid_rules(""),
            *table_rules("transformer.", "query_embed"),
            *_layer_rules(),
            *start_rules(
                "transformer.reference_points",
                "transformer.enc_output",
                "transformer.enc_output_norm",
                "transformer.pos_trans",
                "transformer.pos_trans_norm",
            ),
            *head_rules(
                ("class_embed", "transformer.decoder.class_embed"),
                ("bbox_embed", "transformer.decoder.bbox_embed"),
                ("layers.0", "layers.1", "layers.2"),
                refined=refined,
            ),
        ),
        infer_config=partial(infer_deformable, refined=refined),
        marks=(MARK,),
        fits=lambda file: has_decoder_heads(file) == refined,
        read_metadata=read_metadata,
        check=check_deformable,
    )


DEFORMABLE_DETR, DEFORMABLE_DETR_REFINED = (_layout(refined=refined) for refined in (False, True))
"""Deformable DETR of the original, without and with iterative box refinement."""
