"""Checkpoints of Hugging Face transformers' Deformable DETR.

transformers 4.x writes every name of a tensor that has several. 5.x writes one of them, and of heads that are the same
in all layers only number 0.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from detr_jax.weights.deformable import (
    MARK,
    check_deformable,
    check_variant,
    deformable_attention,
    has_decoder_heads,
    has_proposals,
    head_rules,
    infer_deformable,
    note_queries,
    pyramid_rules,
    start_rules,
    table_rules,
)
from detr_jax.weights.detr_config import layer_count
from detr_jax.weights.files import TensorFile
from detr_jax.weights.huggingface import BACKBONE, own_resnet_rules, read_files, unpacked_attention
from detr_jax.weights.layout import Layout
from detr_jax.weights.metadata import Metadata
from detr_jax.weights.rules import Rule, layer_norm, linear
from detr_jax.weights.torchvision import resnet_rules


def read_metadata(file: TensorFile) -> Metadata:
    """Reads config.json and preprocessor_config.json.

    Raises:
      WeightsError: preprocessor_config.json is not JSON.
    """
    metadata = read_files(file, {"model_type": ("deformable_detr",), "position_embedding_type": ("sine",)})
    config = file.config or {}
    encoder, decoder = (config.get(f"{coder}_n_points", 4) for coder in ("encoder", "decoder"))
    if file.config is not None:
        metadata.num_points = metadata.checked_count(decoder, "config.json has decoder_n_points")
        metadata.num_queries = metadata.checked_count(
            config.get("two_stage_num_proposals", 300), "config.json has two_stage_num_proposals"
        )
    if encoder != decoder:
        metadata.faults.append(
            f"config.json has {encoder} points in the encoder and {decoder} in the decoder: both must be equal."
        )
    check_variant(
        file,
        metadata,
        "config.json has",
        with_box_refine=(config.get("with_box_refine"), has_decoder_heads(file)),
        two_stage=(config.get("two_stage"), has_proposals(file)),
    )
    note_queries(file, metadata)
    return metadata


def repeat_first_class_head(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The class heads of all layers, if the file stores only number 0.

    transformers 5 makes new models with the same class head in all layers, and stores it once.
    """
    if layer_count({path: x.shape for path, x in arrays.items()}, r"class_head/(\d+)/") != 1:
        return {}
    heads = layer_count({path: x.shape for path, x in arrays.items()}, r"box_head/(\d+)/")
    return {
        path.replace("/0/", f"/{i}/"): array
        for path, array in arrays.items()
        if path.startswith("class_head/0/")
        for i in range(1, heads)
    }


def _layer_rules() -> list[Rule]:
    rules: list[Rule] = []
    for layer, ours in (("model.encoder.layers.*", "encoder/layers/*"), ("model.decoder.layers.*", "decoder/layers/*")):
        rules += layer_norm(f"{layer}.self_attn_layer_norm", f"{ours}/self_attention_residual/norm")
        rules += linear(f"{layer}.fc1", f"{ours}/feed_forward/expand")
        rules += linear(f"{layer}.fc2", f"{ours}/feed_forward/contract")
        rules += layer_norm(f"{layer}.final_layer_norm", f"{ours}/feed_forward_residual/norm")
    return [
        *rules,
        *deformable_attention("model.encoder.layers.*.self_attn", "encoder/layers/*/self_attention"),
        *unpacked_attention("model.decoder.layers.*.self_attn", "decoder/layers/*/self_attention"),
        *deformable_attention("model.decoder.layers.*.encoder_attn", "decoder/layers/*/cross_attention"),
        *layer_norm("model.decoder.layers.*.encoder_attn_layer_norm", "decoder/layers/*/cross_attention_residual/norm"),
    ]


def _layout(*, refined: bool) -> Layout:
    return Layout(
        kind="huggingface",
        rules=(
            *resnet_rules(BACKBONE),
            *own_resnet_rules(BACKBONE),
            *pyramid_rules("model."),
            *table_rules("model.", "model.query_position_embeddings"),
            *_layer_rules(),
            *start_rules(
                "model.reference_points",
                "model.enc_output",
                "model.enc_output_norm",
                "model.pos_trans",
                "model.pos_trans_norm",
            ),
            *head_rules(
                ("class_embed", "model.decoder.class_embed"),
                ("bbox_embed", "model.decoder.bbox_embed"),
                ("layers.0", "layers.1", "layers.2"),
                refined=refined,
            ),
        ),
        infer_config=partial(infer_deformable, refined=refined),
        marks=(MARK,),
        fits=lambda file: has_decoder_heads(file) == refined,
        spellings=(
            (r"^model\.backbone\.model\.", BACKBONE),
            (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
            (r"\.mlp\.fc([12])\.", r".fc\1."),
        ),
        read_metadata=read_metadata,
        check=check_deformable,
        complete=repeat_first_class_head,
    )


DEFORMABLE_HUGGINGFACE, DEFORMABLE_HUGGINGFACE_REFINED = (_layout(refined=refined) for refined in (False, True))
"""Deformable DETR of transformers, without and with iterative box refinement."""
