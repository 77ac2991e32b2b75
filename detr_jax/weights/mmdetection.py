"""mmdetection 3.x's DETR: 80 contiguous classes in the order of COCO's ids, background last."""

import ast
from typing import Any

import numpy as np

from detr_jax.config import IMAGENET_MEAN
from detr_jax.data.coco_classes import COCO_CLASSES
from detr_jax.weights.facts import Facts, is_whole
from detr_jax.weights.files import TensorFile
from detr_jax.weights.layout import POINTWISE, TABLE, Layout, Rule, layer_norm, linear, packed_attention
from detr_jax.weights.torchvision import resnet_rules


def _layer_rules(there: str, here: str, attentions: dict[str, str]) -> list[Rule]:
    """A transformer layer: attentions (name there: name here), then the feed-forward network; norms are numbered."""
    rules: list[Rule] = []
    for number, (name, ours) in enumerate(attentions.items()):
        rules += packed_attention(f"{there}.{name}.attn", f"{here}/{ours}")
        rules += layer_norm(f"{there}.norms.{number}", f"{here}/{ours}_residual/norm")
    return [
        *rules,
        *linear(f"{there}.ffn.layers.0.0", f"{here}/feed_forward/expand"),
        *linear(f"{there}.ffn.layers.1", f"{here}/feed_forward/contract"),
        *layer_norm(f"{there}.norms.{len(attentions)}", f"{here}/feed_forward_residual/norm"),
    ]


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
    contiguous_coco=True,
)


def facts(file: TensorFile) -> Facts:
    """What the configuration inside a training checkpoint says, which is Python's text; it is read and never run."""
    found = Facts(rounding="nearest")
    meta = file.metadata.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    config = _read_config(meta.get("cfg"))
    if config is None:
        found.notes.append(
            "It holds no configuration that can be read: images are taken as mmdetection's DETR takes them (RGB, "
            "ImageNet's mean and deviation, 800 pixels, at most 1333)."
        )
        _check_buffers(file, found)
    else:
        model = _part(config, "model")
        _read_images(_part(model, "data_preprocessor") or _part(config, "data_preprocessor"), found)
        _read_pipeline(config, found)
        _read_model(model, found)
    dataset = _part(meta, "dataset_meta") or _part(config or {}, "test_dataloader", "dataset", "metainfo")
    classes = dataset.get("classes") or dataset.get("CLASSES") or ()
    names = tuple(classes) if isinstance(classes, list | tuple) else (classes,) if isinstance(classes, str) else ()
    if names != tuple(COCO_CLASSES.values()):
        found.name_classes(dict(enumerate(names)), "dataset_meta")
    return found


def _check_buffers(file: TensorFile, found: Facts) -> None:
    """Refuses other means than ImageNet's, as the order of their channels stands in the configuration."""
    for name, array in file.tensors.items():
        if name.endswith("data_preprocessor.mean") and not np.allclose(array.ravel() / 255, IMAGENET_MEAN, atol=0.01):
            found.faults.append(
                f"It normalises by the mean {array.ravel().tolist()}, of channels in an order that only the "
                "configuration in a training checkpoint tells (meta.cfg): give a checkpoint that has one."
            )


def _read_config(text: Any) -> dict[str, Any] | None:
    """The top-level values of a configuration's text; what is more than a plain value in it is None."""
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
    """A plain value, of the forms in which mmengine writes them."""
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


def _part(config: Any, *names: str) -> dict[str, Any]:
    """A dictionary inside of others, empty if one of them is missing."""
    for name in names:
        config = config.get(name) if isinstance(config, dict) else None
    return config if isinstance(config, dict) else {}


def _read_images(preprocessor: dict[str, Any], found: Facts) -> None:
    """Mean, deviation and order of channels; images come as blue, green, red from mmcv."""
    mean, std = preprocessor.get("mean"), preprocessor.get("std")
    if mean is None or std is None:
        mean, std = 0.0, 1.0
    found.bgr = not (preprocessor.get("bgr_to_rgb") or preprocessor.get("rgb_to_bgr"))
    found.normalise_by(mean, std, levels=255, where="data_preprocessor of its configuration")


def _read_pipeline(config: dict[str, Any], found: Facts) -> None:
    """The image size of the pipeline for tests."""
    pipeline = _part(config, "test_dataloader", "dataset").get("pipeline") or config.get("test_pipeline") or ()
    steps = [step for step in pipeline if isinstance(step, dict)]
    resizes = [step for step in steps if "Resize" in str(step.get("type"))]
    if not resizes:
        if steps:
            found.short_side = 0
        return
    scale: Any = resizes[0].get("scale")
    if len(resizes) > 1 or resizes[0].get("type") != "Resize" or not _is_pair(scale):
        found.faults.append(
            f"Its test pipeline resizes by {resizes}: only one Resize with a scale of two sides is modelled."
        )
    elif not resizes[0].get("keep_ratio", False):
        found.faults.append(
            f"Its test pipeline resizes every image to {scale[0]} x {scale[1]} pixels (width x height) whatever its "
            "aspect (keep_ratio=False), and here the aspect is always kept."
        )
    else:
        found.short_side, found.max_long_side = min(scale), max(scale)


def _is_pair(scale: Any) -> bool:
    return isinstance(scale, tuple) and len(scale) == 2 and all(map(is_whole, scale))


def _read_model(model: dict[str, Any], found: Facts) -> None:
    """Heads, and what tensors do not show of a model that computes something else."""
    heads = [
        _part(model, part, "layer_cfg", attention).get("num_heads")
        for part, attention in (
            ("encoder", "self_attn_cfg"),
            ("decoder", "self_attn_cfg"),
            ("decoder", "cross_attn_cfg"),
        )
    ]
    found.num_heads = heads[0] if is_whole(heads[0]) else None
    if len({number for number in heads if number}) > 1:
        found.faults.append(f"Its attentions have {heads} heads; they must be equal here.")
    position, backbone = _part(model, "positional_encoding"), _part(model, "backbone")
    plain = {
        "model.type": (model, "type", ("DETR",)),
        "model.backbone.type": (backbone, "type", ("ResNet",)),
        "model.backbone.style": (backbone, "style", ("pytorch",)),
        "model.backbone.strides": (backbone, "strides", ((1, 2, 2, 2),)),
        "model.backbone.dilations": (backbone, "dilations", ((1, 1, 1, 1),)),
        "model.positional_encoding.temperature": (position, "temperature", (10000,)),
        "model.positional_encoding.offset": (position, "offset", (0,)),
        "model.bbox_head.loss_cls.use_sigmoid": (_part(model, "bbox_head", "loss_cls"), "use_sigmoid", (False,)),
        **{
            f"model.{part}.layer_cfg.ffn_cfg.act_cfg.type": (
                _part(model, part, "layer_cfg", "ffn_cfg", "act_cfg"),
                "type",
                ("ReLU",),
            )
            for part in ("encoder", "decoder")
        },
    }
    for name, (values, field, choices) in plain.items():
        if field in values and values[field] not in choices:
            found.faults.append(f"Its configuration has {name}={values[field]!r}, and only {choices[0]!r} is modelled.")
    if position and "type" not in position and not position.get("normalize", False):
        found.faults.append("Its configuration has model.positional_encoding.normalize=False, which is not modelled.")
    found.note_thresholds(_part(model, "test_cfg"), "test_cfg of its configuration")
