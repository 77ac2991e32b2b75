"""What a configuration must fulfil to work: each field by itself, and fields against each other."""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from typing import Any

from detr_jax.config.data import SHAPE_KINDS, DataConfig
from detr_jax.config.effects import format_faults
from detr_jax.config.error import ConfigError
from detr_jax.config.model import LEARNED_CELLS, ModelConfig
from detr_jax.config.run import Config

_DATASETS = ("auto", "coco", "yolo", "voc", "labelme", "tfds", "shapes")

_CHOICES = {
    "model.backbone.block": ("basic", "bottleneck"),
    "model.backbone.stem": ("imagenet", "small"),
    "model.backbone.norm": ("frozen_batch", "group"),
    "model.position_embedding": ("sine", "learned"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "backbone", "transformer", "all"),
    "loss.matcher": ("scipy", "device"),
    "data.dataset": _DATASETS,
    "data.exif": ("auto", "apply", "ignore"),
    "data.yolo_rows": ("auto", "box", "polygon", "pose"),
    "data.voc_one_based": ("auto", "true", "false"),
    "data.on_error": ("raise", "skip"),
    "data.resize_rounding": ("original", "transformers", "nearest", "down"),
    "optimizer.schedule": ("step", "cosine", "constant"),
}

_MAY_BE_ZERO = {
    "model.num_classes",
    "model.num_queries",
    "model.encoder_layers",
    "data.shapes.max_objects",
    "data.shapes.seed",
    "data.val_short_side",
    "data.num_threads",
    "data.num_workers",
    "optimizer.warmup_steps",
    "training.seed",
    "training.early_stop",
    "evaluation.every_epochs",
    "evaluation.pictures",
    "evaluation.snapshots",
}


def check_fields(config: Config) -> None:
    """Checks each field by itself: its type, choice and range.

    Raises:
      ConfigError: one sentence a fault.
    """
    faults = list(_field_faults(config, ""))
    if faults:
        raise ConfigError("\n".join(faults))


def check(config: Config) -> Config:
    """Returns the configuration if it can work.

    Raises:
      ConfigError: it cannot; one sentence a fault, each naming the field, its value and what would be right.
    """
    faults = [*_field_faults(config, ""), *_relation_faults(config)]
    if faults:
        raise ConfigError("\n".join(faults))
    return config


def _field_faults(node: Any, path: str) -> typing.Iterator[str]:
    """Faults of single fields: type, choice, sign."""
    hints = typing.get_type_hints(type(node))
    for f in dataclasses.fields(node):
        name, value = f"{path}{f.name}", getattr(node, f.name)
        if dataclasses.is_dataclass(value):
            yield from _field_faults(value, f"{name}.")
        elif not _has_type(value, hints[f.name]):
            yield f"{name}={value!r} has the wrong type: it must be {_type_name(hints[f.name])}."
        elif name in _CHOICES and value not in _CHOICES[name]:
            yield f"{name}={value!r} is not known: it must be one of {', '.join(map(repr, _CHOICES[name]))}."
        elif hints[f.name] is float:
            if not 0 <= value < float("inf"):
                yield f"{name}={value} is out of range: it must be a finite number, not below 0."
        elif isinstance(value, int) and not isinstance(value, bool):
            least = 0 if name in _MAY_BE_ZERO else 1
            if not least <= value < 2**31:
                yield f"{name}={value} is out of range: it must be at least {least} and below 2**31."
        elif hints[f.name] == tuple[float, float, float]:
            if not all(map(math.isfinite, value)):
                yield f"{name}={value} must hold three finite numbers."
        elif hints[f.name] == tuple[int, ...] and min(value, default=1) < 1:
            yield f"{name}={value} holds a number that is too small: each must be at least 1."


def _relation_faults(config: Config) -> typing.Iterator[str]:
    """Faults between fields; silent where a field by itself is wrong already."""
    if next(_field_faults(config, ""), None):
        return
    model, data, training = config.model, config.data, config.training
    if not 1 <= len(model.backbone.blocks) <= 4:
        yield f"model.backbone.blocks={model.backbone.blocks} must hold one to four positive numbers, one a stage."
    if model.backbone.dilation and (model.backbone.block == "basic" or len(model.backbone.blocks) < 2):
        yield "model.backbone.dilation=True needs bottleneck blocks and two stages or more: use a ResNet-50 or 101."
    if model.backbone.norm == "group" and model.backbone.width % 4:
        yield f"model.backbone.width={model.backbone.width} must be a multiple of 4 with group norm."
    if model.hidden_dim % model.num_heads:
        yield (
            f"model.num_heads={model.num_heads} must divide model.hidden_dim={model.hidden_dim}; "
            "the paper has 8 heads of 32."
        )
    if min(model.pixel_std) <= 0:
        yield f"model.pixel_std={model.pixel_std} must hold three numbers above 0, as images are divided by them."
    if model.hidden_dim % 4:
        yield f"model.hidden_dim={model.hidden_dim} must be a multiple of 4 for the position embedding."
    for name, value in (
        ("model.dropout", model.dropout),
        ("optimizer.beta1", config.optimizer.beta1),
        ("optimizer.beta2", config.optimizer.beta2),
        ("training.ema_decay", training.ema_decay),
    ):
        if value >= 1:
            yield f"{name}={value} must be at least 0 and below 1."
    for name, value in (
        ("evaluation.picture_threshold", config.evaluation.picture_threshold),
        ("data.max_skipped", data.max_skipped),
        ("data.val_share", data.val_share),
    ):
        if value > 1:
            yield f"{name}={value} must lie between 0 and 1."
    if training.batch_size % training.accumulate:
        yield (
            f"training.accumulate={training.accumulate} must divide "
            f"training.batch_size={training.batch_size} into equal parts."
        )
    if training.steps is None and training.epochs is None:
        yield "training.steps and training.epochs are both unset: give one of them."
    yield from _bucket_faults(model, data)
    if data.crop_short_sides and min(data.crop_short_sides) < data.crop_min:
        yield (
            f"data.crop_min={data.crop_min} must not be above the smallest of "
            f"data.crop_short_sides={data.crop_short_sides}."
        )
    if data.crop_short_sides and data.crop_max < data.crop_min:
        yield f"data.crop_max={data.crop_max} must not be below data.crop_min={data.crop_min}."
    if training.follow_checkpoint and not training.init_from:
        yield (
            "training.init_from is empty: give the checkpoint to start from, as --config.training.init_from=PATH, or "
            "set training.follow_checkpoint=False to train from scratch."
        )
    if not data.shapes.kinds or not set(data.shapes.kinds) <= set(SHAPE_KINDS):
        yield f"data.shapes.kinds={data.shapes.kinds} must hold one or more of {', '.join(map(repr, SHAPE_KINDS))}."
    elif len(set(data.shapes.kinds)) < len(data.shapes.kinds):
        yield f"data.shapes.kinds={data.shapes.kinds} must not hold a kind twice."
    if data.shapes.min_size > data.shapes.max_size:
        yield (
            f"data.shapes.min_size={data.shapes.min_size} must not be above "
            f"data.shapes.max_size={data.shapes.max_size}."
        )
    yield from _source_faults(data)


def check_data(data: DataConfig) -> None:
    """Checks what says where a data set is, as `check` does for all of a configuration.

    Raises:
      ConfigError: something is missing or wrong; one sentence a fault.
    """
    faults = list(_field_faults(data, "data.")) or list(_source_faults(data))
    if faults:
        raise ConfigError("\n".join(faults))


def check_prediction(config: Config) -> None:
    """Checks the fields of ``data`` for prediction, which needs no data set.

    Raises:
      ConfigError: a value is wrong, or does not fit the model; one sentence a fault.
    """
    faults = list(_field_faults(config.data, "data.")) or list(_bucket_faults(config.model, config.data))
    if faults:
        raise ConfigError("\n".join(faults))


def _bucket_faults(model: ModelConfig, data: DataConfig) -> typing.Iterator[str]:
    for name in ("train_buckets", "val_buckets"):
        for bucket in getattr(data, name):
            if len(bucket) != 2 or any(side < 1 or side % model.backbone.stride for side in bucket):
                yield (
                    f"data.{name} holds {bucket}: each must be a (height, width) of positive multiples of "
                    f"{model.backbone.stride}, the stride of the backbone."
                )
    yield from _position_faults(model, (*data.train_buckets, *data.val_buckets))


def _source_faults(data: DataConfig) -> typing.Iterator[str]:
    if not data.root and data.dataset not in ("tfds", "shapes"):
        yield "data.root is empty: give the folder of the data set, as --config.data.root=FOLDER."
    if data.dataset == "tfds" and not data.tfds_name:
        yield "data.tfds_name is empty: give the name of a prepared data set, as --config.data.tfds_name=coco/2017."
    yield from format_faults(data)


def _position_faults(model: ModelConfig, buckets: Sequence[tuple[int, int]]) -> typing.Iterator[str]:
    for bucket in buckets if model.position_embedding == "learned" else ():
        if max(bucket) > LEARNED_CELLS * model.backbone.stride:
            yield (
                f"model.position_embedding='learned' reaches {LEARNED_CELLS} x {LEARNED_CELLS} cells of "
                f"{model.backbone.stride} pixels, but the data's bucket {bucket} is larger: use 'sine'."
            )


def check_buckets(model: ModelConfig, buckets: Sequence[tuple[int, int]]) -> None:
    """Checks buckets (height, width) in pixels that were chosen from the data, as `check` does those in the config.

    Raises:
      ConfigError: the model's learned positions do not reach over one of them.
    """
    for fault in _position_faults(model, buckets):
        raise ConfigError(fault)


def _has_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_has_type(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_has_type, value, arguments))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
