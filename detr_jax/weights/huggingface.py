"""Checkpoints of Hugging Face transformers' DETR, with a timm backbone or its own ResNet, and their JSON files.

The rules use the names of transformers 4.x, which every version writes to disk. The names of a raw ``state_dict()`` of
5.x are first respelled to those.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from detr_jax.config import IMAGENET_MEAN, IMAGENET_STD
from detr_jax.weights.detr_config import check_detr, infer_detr
from detr_jax.weights.facebook import mask_head_rules
from detr_jax.weights.files import TensorFile, read_json
from detr_jax.weights.layout import Layout
from detr_jax.weights.metadata import Metadata, is_whole, nested_dict
from detr_jax.weights.rules import POINTWISE, TABLE, Rule, batch_norm, convolution, layer_norm, linear
from detr_jax.weights.torchvision import CONVOLUTIONS, STAGES, resnet_rules

BACKBONE = "model.backbone.conv_encoder.model."
"""The beginning of the names of a backbone's tensors."""


def own_resnet_rules(prefix: str) -> list[Rule]:
    """Rules for transformers' ResNet: ``embedder.embedder``, ``encoder.stages.0.layers.0.layer.0``, ``shortcut`` ..."""

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


def unpacked_attention(name: str, path: str) -> list[Rule]:
    """Rules of an attention that stores query, key and value separately."""
    projections = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    return [rule for stored, ours in projections.items() for rule in linear(f"{name}.{stored}", f"{path}/{ours}")]


def _layer_rules(layer: str, our_layer: str, attentions: dict[str, str]) -> list[Rule]:
    """Rules of a transformer layer: its attentions (stored name: our name), then its feed-forward network."""
    rules: list[Rule] = []
    for name, ours in attentions.items():
        rules += unpacked_attention(f"{layer}.{name}", f"{our_layer}/{ours}")
        rules += layer_norm(f"{layer}.{name}_layer_norm", f"{our_layer}/{ours}_residual/norm")
    return [
        *rules,
        *linear(f"{layer}.fc1", f"{our_layer}/feed_forward/expand"),
        *linear(f"{layer}.fc2", f"{our_layer}/feed_forward/contract"),
        *layer_norm(f"{layer}.final_layer_norm", f"{our_layer}/feed_forward_residual/norm"),
    ]


_PROCESSORS = re.compile(r"(Detr|ConditionalDetr|DeformableDetr)(ImageProcessor(Fast|Pil)?|FeatureExtractor)")
_BILINEAR = 2  # in PIL's numbering


def read_metadata(file: TensorFile) -> Metadata:
    """Reads config.json and preprocessor_config.json.

    Raises:
      WeightsError: preprocessor_config.json is not JSON.
    """
    return read_files(file, {"model_type": ("detr",), "position_embedding_type": ("sine", "learned")})


def read_files(file: TensorFile, modelled: Mapping[str, tuple[Any, ...]]) -> Metadata:
    """Reads config.json and preprocessor_config.json of any family.

    Args:
      file: the checkpoint.
      modelled: the values that fields of config.json may have, the default first.

    Raises:
      WeightsError: preprocessor_config.json is not JSON.
    """
    metadata = Metadata(rounding="transformers")
    if file.config is not None:
        _read_model(file.config, modelled, metadata)
    else:
        metadata.notes.append("There is no config.json: 8 heads are assumed, and classes have no names.")
    read_image_processor(file, metadata)
    return metadata


def read_image_processor(file: TensorFile, metadata: Metadata) -> None:
    """Reads image sizes and normalisation from preprocessor_config.json or processor_config.json.

    Raises:
      WeightsError: one of them is not JSON.
    """
    processor = read_json(file.source.with_name("preprocessor_config.json"))
    if processor is None:
        both = read_json(file.source.with_name("processor_config.json")) or {}
        processor = both.get("image_processor")
    if isinstance(processor, dict):
        _read_processor(processor, metadata)
    else:
        metadata.notes.append(
            "There is no preprocessor_config.json: transformers' defaults are assumed (a short side of 800 pixels, a "
            "long side of at most 1333, ImageNet's mean and deviation)."
        )


def _read_model(config: Mapping[str, Any], modelled: Mapping[str, tuple[Any, ...]], metadata: Metadata) -> None:
    """Reads config.json."""
    metadata.num_heads, metadata.encoder_layers, metadata.decoder_layers = (
        metadata.checked_count(config.get(name), f"config.json has {name}")
        for name in ("encoder_attention_heads", "encoder_layers", "decoder_layers")
    )
    metadata.dilation = _is_dilated(config)
    by_label, by_name = config.get("id2label"), config.get("label2id")
    if not isinstance(by_label, dict) and isinstance(by_name, dict):
        by_label = {label: name for name, label in by_name.items()}
    try:
        names = {int(label): name for label, name in (by_label or {}).items()}
        metadata.set_class_names(names, "id2label of config.json")
    except (TypeError, ValueError, AttributeError):
        metadata.faults.append("config.json has an id2label whose labels are not whole numbers.")
    metadata.note_thresholds(config, "config.json")
    metadata.check_backbone(config.get("backbone"), "config.json has backbone")
    nested_name = nested_dict(config, "backbone_config").get("backbone")
    metadata.check_backbone(nested_name, "config.json has backbone_config.backbone")
    metadata.faults += _model_faults(config, {"activation_function": ("relu",), "num_channels": (3,), **modelled})


def _is_dilated(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes a DC5 model. Its ``dilation`` counts only for timm backbones."""
    backbone, kwargs = nested_dict(config, "backbone_config"), nested_dict(config, "backbone_kwargs")
    uses_timm = config.get("use_timm_backbone", backbone.get("model_type", "timm_backbone") == "timm_backbone")
    strides = (backbone.get("output_stride"), kwargs.get("output_stride"))
    return bool(uses_timm) and bool(config.get("dilation") or 16 in strides)


def _model_faults(config: Mapping[str, Any], modelled: Mapping[str, tuple[Any, ...]]) -> Iterator[str]:
    """Sentences about values of config.json that this package does not model."""
    for name, choices in modelled.items():
        if config.get(name, choices[0]) not in choices:
            known = " or ".join(map(repr, choices))
            yield f"config.json has {name}={config[name]!r}, and only {known} can be imported."
    encoder, decoder = (config.get(f"{coder}_attention_heads", 8) for coder in ("encoder", "decoder"))
    if encoder != decoder:
        yield f"config.json has {encoder} heads in the encoder and {decoder} in the decoder: both must be equal."
    if config.get("quantization_config"):
        yield "config.json has a quantization_config: save the model with plain floating point weights."
    backbone = nested_dict(config, "backbone_config")
    for name in ("downsample_in_bottleneck", "downsample_in_first_stage"):
        if backbone.get(name):
            yield (
                f"config.json has backbone_config.{name}=true, a ResNet with strides in other places than this "
                "package's ResNet."
            )
    if backbone.get("hidden_act", "relu") != "relu":
        yield f"config.json has backbone_config.hidden_act={backbone['hidden_act']!r}, and only 'relu' can be imported."


def _read_processor(processor: Mapping[str, Any], metadata: Metadata) -> None:
    """Reads preprocessor_config.json. Missing values are transformers' defaults."""
    where = "preprocessor_config.json"
    kind = processor.get("image_processor_type") or processor.get("feature_extractor_type") or "DetrImageProcessor"
    if not _PROCESSORS.fullmatch(str(kind)):
        metadata.faults.append(f"{where} is for {kind}, which prepares images differently from DetrImageProcessor.")
        return
    if processor.get("do_resize", True):
        _read_size(processor, metadata)
        if processor.get("resample", _BILINEAR) not in (_BILINEAR, None, "bilinear"):
            metadata.faults.append(
                f"{where} has resample={processor['resample']!r}, and this package resizes images bilinearly: set it "
                "to 2 (bilinear) in the file if that difference does not matter."
            )
    else:
        metadata.short_side = 0
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    if not isinstance(factor, int | float) or isinstance(factor, bool) or not 0 < factor < math.inf:
        metadata.faults.append(f"{where} has rescale_factor={factor!r}: it must be a number above 0, such as 1/255.")
        return
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if not processor.get("do_normalize", True):
        mean, std = 0.0, 1.0
    mean, std = (IMAGENET_MEAN if mean is None else mean), (IMAGENET_STD if std is None else std)
    metadata.set_normalisation(mean, std, levels=255 * factor, where=where)
    metadata.note_thresholds(processor, where)
    pad_size = processor.get("pad_size")
    if processor.get("do_pad", processor.get("pad_and_return_pixel_mask", True)) and isinstance(pad_size, dict):
        sides: list[Any] = [pad_size.get(name) for name in ("height", "width")]
        if all(map(is_whole, sides)):
            metadata.bucket = sides[0], sides[1]
        else:
            metadata.faults.append(f"{where} has pad_size={pad_size}: it must have a height and a width in pixels.")


def _read_size(processor: Mapping[str, Any], metadata: Metadata) -> None:
    """Reads the image sizes, in every form that a version of transformers has written."""
    size, limit = processor.get("size"), processor.get("max_size")
    if size is None:
        size = {"shortest_edge": 800, "longest_edge": 1333}
    elif isinstance(size, int):
        size = {"shortest_edge": size, "longest_edge": 1333 if limit is None else limit}
    sides = {name: value for name, value in size.items() if value is not None} if isinstance(size, dict) else {}
    names = sides.keys() if all(map(is_whole, sides.values())) else set()
    if names >= {"shortest_edge", "longest_edge"}:
        metadata.short_side, metadata.max_long_side = sides["shortest_edge"], sides["longest_edge"]
    elif names == {"max_height", "max_width"} and sides["max_height"] == sides["max_width"]:
        metadata.short_side = metadata.max_long_side = sides["max_height"]
        metadata.rounding = "down"
    elif names == {"height", "width"}:
        metadata.faults.append(
            f"preprocessor_config.json resizes every image to {sides['height']} x {sides['width']} pixels (height x "
            "width) regardless of its aspect ratio, and this package always keeps the aspect ratio."
        )
    else:
        metadata.faults.append(
            f"preprocessor_config.json has size={size!r}: it must have shortest_edge and longest_edge, or max_height "
            "and max_width that are equal, in pixels."
        )


HUGGINGFACE = Layout(
    kind="huggingface",
    rules=(
        *resnet_rules(BACKBONE),
        *own_resnet_rules(BACKBONE),
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
        *mask_head_rules(),
    ),
    spellings=(
        (r"^detr\.", ""),  # the detector inside the segmentation model
        (r"^model\.backbone\.model\.", BACKBONE),
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
    read_metadata=read_metadata,
    infer_config=infer_detr,
    check=check_detr,
)
"""Detectors and panoptic models of transformers."""
