"""Hugging Face transformers' DETR, with a timm backbone or its own ResNet, and what its config.json says.

The rules are for the names of transformers 4.x, which every version writes to disk; those of a raw
``state_dict()`` of 5.x are spelled back first.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from detr_jax.weights.facebook import MASK_HEAD
from detr_jax.weights.layout import POINTWISE, TABLE, Layout, Rule, batch_norm, convolution, layer_norm, linear
from detr_jax.weights.torchvision import CONVOLUTIONS, STAGES, resnet_rules

_BACKBONE = "model.backbone.conv_encoder.model."


def _own_resnet_rules(prefix: str) -> list[Rule]:
    """transformers' ResNet: ``embedder.embedder``, ``encoder.stages.0.layers.0.layer.0``, ``shortcut`` ..."""

    def conv_norm(name: str, path: str) -> list[Rule]:
        return [
            *convolution(f"{prefix}{name}.convolution", f"backbone/{path}/conv"),
            *batch_norm(f"{prefix}{name}.normalization", f"backbone/{path}/norm"),
        ]

    rules = conv_norm("embedder.embedder", "stem/conv")
    for stage in range(STAGES):
        block, ours = f"encoder.stages.{stage}.layers.*", f"stages/{stage}/*"
        for k in range(CONVOLUTIONS):
            rules += conv_norm(f"{block}.layer.{k}", f"{ours}/convs/{k}")
        rules += conv_norm(f"{block}.shortcut", f"{ours}/shortcut")
    return rules


def _attention(name: str, path: str) -> list[Rule]:
    parts = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    return [rule for there, here in parts.items() for rule in linear(f"{name}.{there}", f"{path}/{here}")]


def _layer_rules(there: str, here: str, attentions: dict[str, str]) -> list[Rule]:
    """A transformer layer: attentions (name there: name here), then the feed-forward network."""
    rules: list[Rule] = []
    for name, ours in attentions.items():
        rules += _attention(f"{there}.{name}", f"{here}/{ours}")
        rules += layer_norm(f"{there}.{name}_layer_norm", f"{here}/{ours}_residual/norm")
    return [
        *rules,
        *linear(f"{there}.fc1", f"{here}/feed_forward/expand"),
        *linear(f"{there}.fc2", f"{here}/feed_forward/contract"),
        *layer_norm(f"{there}.final_layer_norm", f"{here}/feed_forward_residual/norm"),
    ]


HUGGINGFACE = Layout(
    kind="huggingface",
    rules=(
        *resnet_rules(_BACKBONE),
        *_own_resnet_rules(_BACKBONE),
        *linear("model.input_projection", "input_projection", POINTWISE),
        Rule("model.query_position_embeddings.weight", ("object_queries",), TABLE),
        Rule("model.backbone.position_embedding.row_embeddings.weight", ("position_embedding/rows",), TABLE),
        Rule("model.backbone.position_embedding.column_embeddings.weight", ("position_embedding/columns",), TABLE),
        *_layer_rules("model.encoder.layers.*", "encoder/layers/*", {"self_attn": "self_attention"}),
        *_layer_rules(
            "model.decoder.layers.*",
            "decoder/layers/*",
            {"self_attn": "self_attention", "encoder_attn": "cross_attention"},
        ),
        *layer_norm("model.decoder.layernorm", "decoder/norm"),
        *linear("class_labels_classifier", "class_head"),
        *linear("bbox_predictor.layers.*", "box_head/layers/*"),
    ),
    spellings=(
        (r"^detr\.", ""),  # the detector inside of its segmentation model
        (r"^model\.backbone\.model\.", _BACKBONE),
        (r"^model\.position_embedding\.", "model.backbone.position_embedding."),
        (r"_attn\.o_proj\.", "_attn.out_proj."),
        (r"\.mlp\.fc([12])\.", r".fc\1."),
        (r"^bbox_attention\.([qk])_proj\.", r"bbox_attention.\1_linear."),
        (r"^mask_head\.output_conv\.", "mask_head.out_lay."),
        *((rf"^mask_head\.conv{i}\.conv\.", f"mask_head.lay{i}.") for i in (1, 2)),
        *((rf"^mask_head\.conv{i}\.norm\.", f"mask_head.gn{i}.") for i in (1, 2)),
        *((rf"^mask_head\.fpn_stages\.{i}\.fpn_adapter\.", f"mask_head.adapter{i + 1}.") for i in range(3)),
        *((rf"^mask_head\.fpn_stages\.{i}\.refine\.conv\.", f"mask_head.lay{i + 3}.") for i in range(3)),
        *((rf"^mask_head\.fpn_stages\.{i}\.refine\.norm\.", f"mask_head.gn{i + 3}.") for i in range(3)),
    ),
    aside=MASK_HEAD,
)


def is_dilated(config: Mapping[str, Any]) -> bool:
    """Whether a config.json means a DC5 model; ``dilation`` counts for timm backbones only."""
    backbone = config.get("backbone_config") or {}
    uses_timm = config.get("use_timm_backbone", backbone.get("model_type", "timm_backbone") == "timm_backbone")
    return bool(uses_timm) and bool(config.get("dilation") or backbone.get("output_stride") == 16)


def config_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about what a config.json asks for and this package does not model."""
    wanted = {
        "model_type": ("detr",),
        "activation_function": ("relu",),
        "position_embedding_type": ("sine", "learned"),
        "num_channels": (3,),
    }
    for name, choices in wanted.items():
        if config.get(name, choices[0]) not in choices:
            known = " or ".join(map(repr, choices))
            yield f"config.json has {name}={config[name]!r}, and only {known} can be imported."
    encoder, decoder = (config.get(f"{part}_attention_heads", 8) for part in ("encoder", "decoder"))
    if encoder != decoder:
        yield f"config.json has {encoder} heads in the encoder and {decoder} in the decoder; they must be equal here."
    backbone = config.get("backbone_config") or {}
    for name in ("downsample_in_bottleneck", "downsample_in_first_stage"):
        if backbone.get(name):
            yield f"config.json has backbone_config.{name}=true, a ResNet that strides elsewhere than this package's."
    if backbone.get("hidden_act", "relu") != "relu":
        yield f"config.json has backbone_config.hidden_act={backbone['hidden_act']!r}, and only 'relu' can be imported."
