"""Checkpoints of mmdetection 3.x's Deformable DETR, whose classes are 80 contiguous ones without "no object"."""

import re
from collections.abc import Mapping
from functools import partial

import numpy as np

from detr_jax.config import DetectorConfig
from detr_jax.weights.deformable import (
    MARK,
    check_deformable,
    check_variant,
    deformable_attention,
    has_proposals,
    head_rules,
    infer_deformable,
    note_queries,
    start_rules,
    table_rules,
)
from detr_jax.weights.detr_config import check_no_dilation
from detr_jax.weights.files import TensorFile
from detr_jax.weights.finishing import sigmoid_to_rgb_and_coco_ids
from detr_jax.weights.layout import Layout
from detr_jax.weights.metadata import Metadata, is_whole, nested, nested_dict
from detr_jax.weights.mmdetection import feed_forward_rules, read_training_config, training_config
from detr_jax.weights.rules import CONVOLUTION, Rule, layer_norm, linear, packed_attention
from detr_jax.weights.torchvision import resnet_rules


def read_metadata(file: TensorFile) -> Metadata:
    """Reads the configuration inside a training checkpoint, a Python text. The text is parsed and never run."""
    family = {"type": "DeformableDETR", "offset": -0.5, "temperature": 10000, "use_sigmoid": True}
    metadata = read_training_config(file, family)
    model = nested_dict(training_config(file) or {}, "model")
    points = nested(model, "decoder", "layer_cfg", "cross_attn_cfg", "num_points")
    metadata.num_points = points if is_whole(points) else None
    metadata.num_queries = metadata.checked_count(model.get("num_queries"), "Its configuration has num_queries")
    check_variant(
        file,
        metadata,
        "Its configuration has",
        as_two_stage=(model.get("as_two_stage"), has_proposals(file)),
    )
    note_queries(file, metadata)
    return metadata


def is_refined(file: TensorFile) -> bool:
    """Whether every decoder layer has its own heads, by the configuration or else by the values of the box heads.

    Box heads of a model with refinement differ from the start: only the first one's biases make its boxes small.
    """
    stated = nested(training_config(file), "model", "with_box_refine")
    if isinstance(stated, bool):
        return stated
    first: dict[str, np.ndarray] = {}
    for name, array in file.tensors.items():
        found = re.fullmatch(r"(.*bbox_head\.reg_branches\.)\d+(\.\d+\.\w+)", name)
        if found and not np.array_equal(array, first.setdefault("".join(found.groups()), array)):
            return True
    return False


def zero_biases(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Biases of the feature pyramid's convolutions. mmdetection omits all of them, because norms follow."""
    kernels = {path: x for path, x in arrays.items() if re.fullmatch(r"pyramid/\w+/\d+/kernel", path)}
    biases = {path.replace("/kernel", "/bias"): np.zeros(x.shape[-1], np.float32) for path, x in kernels.items()}
    return {} if biases.keys() & arrays.keys() else biases


def check(config: DetectorConfig) -> list[str]:
    """Sentences about a configuration that cannot be built or is not modelled."""
    return [*check_deformable(config), *check_no_dilation(config, "mmdetection")]


def neck_rules() -> list[Rule]:
    """Rules of the feature pyramid."""
    rules: list[Rule] = []
    for stored, ours in (("neck.convs.*", "pyramid/projections/*"), ("neck.extra_convs.*", "pyramid/extra/*")):
        rules += linear(f"{stored}.conv", ours, CONVOLUTION)
        rules += layer_norm(f"{stored}.gn", f"{ours}/norm")
    return rules


def layer_rules() -> list[Rule]:
    """Rules of the layers. Norms are numbered in the order of their use."""
    encoder, decoder = "encoder.layers.*", "decoder.layers.*"
    return [
        *deformable_attention(f"{encoder}.self_attn", f"{_ours(encoder)}/self_attention"),
        *layer_norm(f"{encoder}.norms.0", f"{_ours(encoder)}/self_attention_residual/norm"),
        *feed_forward_rules(encoder, _ours(encoder), 1),
        *packed_attention(f"{decoder}.self_attn.attn", f"{_ours(decoder)}/self_attention"),
        *layer_norm(f"{decoder}.norms.0", f"{_ours(decoder)}/self_attention_residual/norm"),
        *deformable_attention(f"{decoder}.cross_attn", f"{_ours(decoder)}/cross_attention"),
        *layer_norm(f"{decoder}.norms.1", f"{_ours(decoder)}/cross_attention_residual/norm"),
        *feed_forward_rules(decoder, _ours(decoder), 2),
    ]


def _ours(layer: str) -> str:
    return layer.replace(".", "/")


def _layout(*, refined: bool) -> Layout:
    return Layout(
        kind="mmdetection",
        rules=(
            *resnet_rules("backbone."),
            *neck_rules(),
            *table_rules("", "query_embedding"),
            *layer_rules(),
            *start_rules(
                "reference_points_fc", "memory_trans_fc", "memory_trans_norm", "pos_trans_fc", "pos_trans_norm"
            ),
            *head_rules(("bbox_head.cls_branches",), ("bbox_head.reg_branches",), ("0", "2", "4"), refined=refined),
        ),
        infer_config=partial(infer_deformable, refined=refined),
        marks=(MARK,),
        fits=lambda file: is_refined(file) == refined,
        ignored=r".*\.num_batches_tracked|data_preprocessor\.(mean|std)",
        read_metadata=read_metadata,
        check=check,
        complete=zero_biases,
        finish=sigmoid_to_rgb_and_coco_ids,
    )


DEFORMABLE_MMDETECTION, DEFORMABLE_MMDETECTION_REFINED = (_layout(refined=refined) for refined in (False, True))
"""Deformable DETR of mmdetection 3.x, without and with iterative box refinement."""
