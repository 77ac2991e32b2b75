"""Checkpoints of mmdetection 3.x's DINO. It has 80 contiguous classes, and every layer has its own heads."""

from detr_jax.config import DINOConfig
from detr_jax.weights.deformable import common_fields, head_rules
from detr_jax.weights.deformable_mmdetection import check, layer_rules, neck_rules, zero_biases
from detr_jax.weights.detr_config import common_size
from detr_jax.weights.files import TensorFile
from detr_jax.weights.finishing import sigmoid_to_rgb_and_coco_ids
from detr_jax.weights.layout import Layout, Options, Shapes
from detr_jax.weights.metadata import Metadata, is_whole, nested
from detr_jax.weights.mmdetection import read_training_config, training_config
from detr_jax.weights.rules import TABLE, Rule, layer_norm, linear
from detr_jax.weights.torchvision import resnet_rules


def infer_dino(shapes: Shapes, metadata: Metadata, options: Options) -> DINOConfig:
    """`Layout.infer_config` for a DINO whose layers have their own heads."""
    return DINOConfig(
        **common_fields(shapes, metadata, options),
        num_queries=common_size(shapes, r"content", axis=0, default=DINOConfig().num_queries),
        share_heads=False,
    )


def read_metadata(file: TensorFile) -> Metadata:
    """Reads the configuration inside a training checkpoint, a Python text. The text is parsed and never run."""
    family = {"type": "DINO", "offset": 0, "temperature": 20, "use_sigmoid": True}
    metadata = read_training_config(file, family)
    points = nested(training_config(file), "model", "decoder", "layer_cfg", "cross_attn_cfg", "num_points")
    metadata.num_points = points if is_whole(points) else None
    return metadata


DINO_MMDETECTION = Layout(
    kind="mmdetection",
    rules=(
        *resnet_rules("backbone."),
        *neck_rules(),
        Rule("level_embed", ("pyramid/level_embedding",), TABLE),
        Rule("query_embedding.weight", ("content",), TABLE),
        Rule("dn_query_generator.label_embedding.weight", ("label_embedding",), TABLE),
        *layer_rules(),
        *layer_norm("decoder.norm", "decoder/norm"),
        *linear("decoder.ref_point_head.layers.*", "decoder/position_head/layers/*"),
        *linear("memory_trans_fc", "proposer/memory_projection"),
        *layer_norm("memory_trans_norm", "proposer/memory_norm"),
        *head_rules(("bbox_head.cls_branches",), ("bbox_head.reg_branches",), ("0", "2", "4"), refined=True),
    ),
    infer_config=infer_dino,
    marks=("sampling_offsets", "dn_query_generator", "ref_point_head"),
    ignored=r".*\.num_batches_tracked|data_preprocessor\.(mean|std)",
    read_metadata=read_metadata,
    check=check,
    complete=zero_biases,
    finish=sigmoid_to_rgb_and_coco_ids,
)
"""DINO of mmdetection 3.x."""
