"""Checkpoints of mmdetection 3.x's DETR, whose classes are 80 contiguous ones in the order of COCO's ids."""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from detr_jax.config import IMAGENET_MEAN, DetectorConfig
from detr_jax.data.coco_classes import COCO_CLASSES
from detr_jax.weights.detr_config import check_detr, check_no_dilation, infer_detr
from detr_jax.weights.files import TensorFile
from detr_jax.weights.finishing import to_rgb_and_coco_ids
from detr_jax.weights.layout import Layout
from detr_jax.weights.metadata import Metadata, is_whole, nested, nested_dict
from detr_jax.weights.rules import POINTWISE, TABLE, Rule, layer_norm, linear, packed_attention
from detr_jax.weights.torchvision import resnet_rules


def feed_forward_rules(layer: str, our_layer: str, norm: int) -> list[Rule]:
    """Rules of a layer's feed-forward network and of the norm behind it, which has this number."""
    return [
        *linear(f"{layer}.ffn.layers.0.0", f"{our_layer}/feed_forward/expand"),
        *linear(f"{layer}.ffn.layers.1", f"{our_layer}/feed_forward/contract"),
        *layer_norm(f"{layer}.norms.{norm}", f"{our_layer}/feed_forward_residual/norm"),
    ]


def _layer_rules(layer: str, our_layer: str, attentions: dict[str, str]) -> list[Rule]:
    """Rules of a transformer layer: its attentions (stored name: our name), then its feed-forward network.

    Its norms are numbered in the same order.
    """
    rules: list[Rule] = []
    for number, (name, ours) in enumerate(attentions.items()):
        rules += packed_attention(f"{layer}.{name}.attn", f"{our_layer}/{ours}")
        rules += layer_norm(f"{layer}.norms.{number}", f"{our_layer}/{ours}_residual/norm")
    return [*rules, *feed_forward_rules(layer, our_layer, len(attentions))]


def training_config(file: TensorFile) -> dict[str, Any] | None:
    """The configuration inside a training checkpoint, or None if there is none that can be read."""
    return _read_config(nested(file.extras, "meta", "cfg"))


def read_metadata(file: TensorFile) -> Metadata:
    """Reads the configuration inside a training checkpoint, a Python text. The text is parsed and never run."""
    return read_training_config(file, {"type": "DETR", "offset": 0, "temperature": 10000, "use_sigmoid": False})


def read_training_config(file: TensorFile, family: Mapping[str, Any]) -> Metadata:
    """Reads the configuration inside a training checkpoint of any family.

    Args:
      file: the checkpoint.
      family: the only values of ``model.type``, ``model.positional_encoding.offset`` and ``temperature``, and
        ``model.bbox_head.loss_cls.use_sigmoid`` that are modelled.
    """
    metadata = Metadata(rounding="nearest")
    meta = nested_dict(file.extras, "meta")
    config = training_config(file)
    if config is None:
        metadata.notes.append(
            "It holds no readable configuration: the defaults of mmdetection's DETR are assumed (RGB, ImageNet's mean "
            "and deviation, 800 pixels, at most 1333)."
        )
        _check_buffers(file, metadata)
    else:
        model = nested_dict(config, "model")
        _read_images(nested_dict(model, "data_preprocessor") or nested_dict(config, "data_preprocessor"), metadata)
        _read_pipeline(config, metadata)
        _read_model(model, family, metadata)
    dataset = nested_dict(meta, "dataset_meta") or nested_dict(config or {}, "test_dataloader", "dataset", "metainfo")
    classes = dataset.get("classes") or dataset.get("CLASSES") or ()
    names = tuple(classes) if isinstance(classes, list | tuple) else (classes,) if isinstance(classes, str) else ()
    if names != tuple(COCO_CLASSES.values()):
        metadata.set_class_names(dict(enumerate(names)), "dataset_meta")
    return metadata


def _check_buffers(file: TensorFile, metadata: Metadata) -> None:
    """Refuses means other than ImageNet's, because only a configuration gives the order of their channels."""
    for name, array in file.tensors.items():
        if name.endswith("data_preprocessor.mean") and not np.allclose(array.ravel() / 255, IMAGENET_MEAN, atol=0.01):
            metadata.faults.append(
                f"It normalises by the mean {array.ravel().tolist()}, and the order of its channels is unknown: give "
                "a training checkpoint, which holds it in its configuration (meta.cfg)."
            )


def _read_config(text: Any) -> dict[str, Any] | None:
    """The top-level values of a configuration's text. Everything but plain values becomes None."""
    if isinstance(text, dict):
        return text
    if not isinstance(text, str):
        return None
    values: dict[str, Any] = {}
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and isinstance(target := statement.targets[0], ast.Name):
                values[target.id] = _value(statement.value, values)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return values or None


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    """A plain value, in the forms that mmengine writes."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _value(keyword.value, known) for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_value(key, known): _value(value, known) for key, value in pairs if isinstance(key, ast.Constant)}
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(item, known) for item in node.elts)
    if isinstance(node, ast.Name):
        return known.get(node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def _read_images(preprocessor: dict[str, Any], metadata: Metadata) -> None:
    """Reads mean, deviation and order of channels. mmcv loads images as blue, green, red."""
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    if mean is None or std is None:
        mean, std = 0.0, 1.0
    metadata.bgr = not (preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr"))
    metadata.set_normalisation(mean, std, levels=255, where="data_preprocessor of its configuration")


def _read_pipeline(config: dict[str, Any], metadata: Metadata) -> None:
    """Reads the image size from the pipeline for tests."""
    pipeline = nested_dict(config, "test_dataloader", "dataset").get("pipeline") or config.get("test_pipeline") or ()
    steps = [step for step in pipeline if isinstance(step, dict)]
    resizes = [step for step in steps if "Resize" in str(step.get("type"))]
    if not resizes:
        if steps:
            metadata.short_side = 0
        return
    scale: Any = resizes[0].get("scale")
    if len(resizes) > 1 or resizes[0].get("type") != "Resize" or not _is_pair(scale):
        metadata.faults.append(
            f"Its test pipeline resizes by {resizes}: only one Resize with a scale of two sides is modelled."
        )
    elif not resizes[0].get("keep_ratio", False):
        metadata.faults.append(
            f"Its test pipeline resizes every image to {scale[0]} x {scale[1]} pixels (width x height) regardless of "
            "its aspect ratio (keep_ratio=False), and this package always keeps the aspect ratio."
        )
    else:
        metadata.short_side, metadata.max_long_side = min(scale), max(scale)


def _is_pair(scale: Any) -> bool:
    return isinstance(scale, tuple) and len(scale) == 2 and all(map(is_whole, scale))


def _read_model(model: dict[str, Any], family: Mapping[str, Any], metadata: Metadata) -> None:
    """Reads the number of heads, and refuses values that change the computation without changing the tensors."""
    heads = [
        nested_dict(model, coder, "layer_cfg", attention).get("num_heads")
        for coder, attention in (
            ("encoder", "self_attn_cfg"),
            ("decoder", "self_attn_cfg"),
            ("decoder", "cross_attn_cfg"),
        )
    ]
    metadata.num_heads = next((number for number in heads if is_whole(number)), None)
    if len({number for number in heads if number}) > 1:
        metadata.faults.append(f"Its attentions have {heads} heads: all numbers must be equal.")
    position, backbone = nested_dict(model, "positional_encoding"), nested_dict(model, "backbone")
    modelled = {
        "model.type": (model, "type", (family["type"],)),
        "model.backbone.type": (backbone, "type", ("ResNet",)),
        "model.backbone.style": (backbone, "style", ("pytorch",)),
        "model.backbone.strides": (backbone, "strides", ((1, 2, 2, 2),)),
        "model.backbone.dilations": (backbone, "dilations", ((1, 1, 1, 1),)),
        "model.positional_encoding.temperature": (position, "temperature", (family["temperature"],)),
        "model.positional_encoding.offset": (position, "offset", (family["offset"],)),
        "model.bbox_head.loss_cls.use_sigmoid": (
            nested_dict(model, "bbox_head", "loss_cls"),
            "use_sigmoid",
            (family["use_sigmoid"],),
        ),
        **{
            f"model.{coder}.layer_cfg.ffn_cfg.act_cfg.type": (
                nested_dict(model, coder, "layer_cfg", "ffn_cfg", "act_cfg"),
                "type",
                ("ReLU",),
            )
            for coder in ("encoder", "decoder")
        },
    }
    for name, (values, field, choices) in modelled.items():
        if field in values and values[field] not in choices:
            metadata.faults.append(
                f"Its configuration has {name}={values[field]!r}, and only {choices[0]!r} is modelled."
            )
    if position and "type" not in position and not position.get("normalize", False):
        metadata.faults.append(
            "Its configuration has model.positional_encoding.normalize=False, which is not modelled."
        )
    metadata.note_thresholds(nested_dict(model, "test_cfg"), "test_cfg of its configuration")


def check(config: DetectorConfig) -> Iterator[str]:
    """Sentences about a configuration that cannot be built or is not modelled."""
    yield from check_detr(config)
    yield from check_no_dilation(config, "mmdetection")


MMDETECTION = Layout(
    kind="mmdetection",
    rules=(
        *resnet_rules("backbone."),
        *linear("neck.convs.0.conv", "input_projection", POINTWISE),
        Rule("query_embedding.weight", ("object_queries",), TABLE),
        Rule("positional_encoding.row_embed.weight", ("position_embedding/rows",), TABLE),
        Rule("positional_encoding.col_embed.weight", ("position_embedding/columns",), TABLE),
        *_layer_rules("encoder.layers.*", "encoder/layers/*", {"self_attn": "self_attention"}),
        *_layer_rules(
            "decoder.layers.*", "decoder/layers/*", {"self_attn": "self_attention", "cross_attn": "cross_attention"}
        ),
        *layer_norm("decoder.post_norm", "decoder/norm"),
        *linear("bbox_head.fc_cls", "class_head"),
        *linear("bbox_head.reg_ffn.layers.0.0", "box_head/layers/0"),
        *linear("bbox_head.reg_ffn.layers.1", "box_head/layers/1"),
        *linear("bbox_head.fc_reg", "box_head/layers/2"),
    ),
    ignored=r".*\.num_batches_tracked|data_preprocessor\.(mean|std)",
    read_metadata=read_metadata,
    infer_config=infer_detr,
    check=check,
    finish=to_rgb_and_coco_ids,
)
"""Detectors of mmdetection 3.x."""
