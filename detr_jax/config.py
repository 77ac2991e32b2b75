"""The typed configuration of a model and its training.

A file under ``configs/`` returns a `Config` from ``get_config()``; ``train.py`` changes single fields with
``--config.optimizer.learning_rate=1e-4``. `check` finds what cannot work before anything starts, and
`to_json` / `from_json` carry the configuration beside every checkpoint.

Numbers of the paper stand here, once, as defaults: they are those of DETR R50 on COCO.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LEARNED_CELLS = 50  # rows and columns in the original's tables of learned positions


SHAPE_KINDS = ("circle", "square", "triangle", "cross", "ring", "diamond")
"""What the embedded data set can draw."""


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the field, its value and what would be right."""


@dataclass(kw_only=True)
class BackboneConfig:
    """A residual network."""

    block: str = "bottleneck"
    """"basic" (ResNet-18, 34) or "bottleneck" (ResNet-50, 101)."""
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage, one to four stages."""
    width: int = 64
    """Channels of the stem and of the first stage's 3x3 convolutions; doubled at every stage."""
    stem: str = "imagenet"
    """"imagenet" (7x7 convolution and max-pool, stride 4) or "small" (3x3 convolution, stride 2)."""
    norm: str = "frozen_batch"
    """"frozen_batch" for pretrained weights, "group" when training from scratch."""
    dilation: bool = False
    """DC5: the last stage keeps its resolution and is dilated instead."""

    @property
    def expansion(self) -> int:
        """Output channels of a block over its inner channels."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def out_channels(self) -> int:
        """Channels of the last stage."""
        return self.width * 2 ** (len(self.blocks) - 1) * self.expansion

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the last stage."""
        return (4 if self.stem == "imagenet" else 2) * 2 ** (len(self.blocks) - 1 - self.dilation)


@dataclass(kw_only=True)
class ModelConfig:
    """The detector (DETR, section 3.2 and appendix A)."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_classes: int = 91
    """Highest label plus 1 (COCO's raw ids reach 90); the head has one output more, for "no object". 0 when a training
    starts: from the data; the checkpoint holds the number."""
    num_queries: int = 100
    """More than the objects that an image can have. 0 when a training starts: those of the checkpoint that it follows,
    or else 100; the checkpoint holds the number."""
    hidden_dim: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward_dim: int = 2048
    dropout: float = 0.1
    pre_norm: bool = False
    """Layer norm before each sublayer in place of after it."""
    position_embedding: str = "sine"
    """"sine" or "learned"."""
    mask_padding: bool = True
    """Keep padding out of the backbone, so that it never changes an answer; False is the original on a padded batch."""
    dtype: str = "float32"
    """Compute type, "float32" or "bfloat16" (parameters, norms, residuals, softmax, heads, losses: float32 always)."""


@dataclass(kw_only=True)
class LossConfig:
    """Matching cost and set loss (DETR, section 3.1 and appendix A.2)."""

    matcher: str = "scipy"
    """"scipy" (linear_sum_assignment on the host) or "device" (the same optimum on the accelerator)."""
    class_weight: float = 1.0
    bbox_weight: float = 5.0
    giou_weight: float = 2.0
    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    eos_coefficient: float = 0.1
    """Weight of "no object" in the classification loss."""
    auxiliary: bool = True
    """Train every decoder layer's predictions, not only the last's."""


@dataclass(kw_only=True)
class ShapesConfig:
    """The embedded data set: circles, squares and triangles, or other shapes, drawn from a seed."""

    train_images: int = 4096
    val_images: int = 512
    min_size: int = 48
    """Smallest height and width of an image, in pixels."""
    max_size: int = 64
    max_objects: int = 4
    kinds: tuple[str, ...] = ("circle", "square", "triangle")
    """The classes, labelled 0, 1, ...: "circle", "square", "triangle", "cross", "ring" or "diamond"."""
    seed: int = 0


@dataclass(kw_only=True)
class DataConfig:
    """Where images come from and how they are prepared."""

    dataset: str = "coco"
    """"coco" (a folder of images and an instances JSON), "yolo" (images, text files and a data.yaml), "voc" (images and
    XML files), "tfds" (prepared by TensorFlow Datasets) or "shapes" (drawn on the fly)."""
    root: str = ""
    """Folder of the data set: for "coco" and "yolo" the paths below are relative to it unless absolute, for "voc" it
    holds ImageSets/ or one folder a split, for "tfds" it is TFDS's data_dir (empty: TFDS's default)."""
    train_images: str = "train2017"
    """This and the next three: the paths of "coco"."""
    train_annotations: str = "annotations/instances_train2017.json"
    val_images: str = "val2017"
    val_annotations: str = "annotations/instances_val2017.json"
    yolo_file: str = "data.yaml"
    """File that names the classes and the images of both splits of "yolo"."""
    train_split: str = "train"
    """Split of "voc" (its list in ImageSets/Main, or its folder) or "tfds" (such as "train[:90%]") to train on."""
    val_split: str = ""
    """Split to evaluate on; empty: "val" of "voc", "validation" of "tfds"."""
    tfds_name: str = ""
    """Name of a "tfds" data set, such as "coco/2017"."""
    tfds_val_annotations: str = ""
    """Instances JSON to evaluate "tfds" against, joined by image id, as areas of coco/2017 are cut to whole numbers in
    TFDS; relative to root unless absolute; empty: what TFDS says."""
    shapes: ShapesConfig = field(default_factory=ShapesConfig)

    train_short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Short sides to resize to, drawn evenly, in pixels; empty: no resizing."""
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    """Short sides to resize to before a random crop; empty: never crop."""
    crop_min: int = 384
    crop_max: int = 600
    """The crop's width and height are drawn from crop_min to min(side, crop_max), both included, in pixels."""
    val_short_side: int = 800
    """Short side of validation images, in pixels; 0: no resizing."""
    max_long_side: int = 1333
    """Limit of the long side after resizing, in pixels (rounding may pass it by some, as the original's does)."""
    flip: bool = True
    """Flip half of the training images left to right."""

    train_buckets: tuple[tuple[int, int], ...] = ()
    """Canvas shapes (height, width) in pixels, one compilation each; empty: chosen from the data's own sizes."""
    num_train_buckets: int = 12
    """The most canvases to choose for training; more of them waste less on padding and take longer to compile."""
    val_buckets: tuple[tuple[int, int], ...] = ()
    """The same for validation."""
    num_val_buckets: int = 6
    num_threads: int = 0
    """Threads that read and prepare images in this process, or in each worker process; 0: one a core, shared among
    the processes."""
    num_workers: int = 0
    """Worker processes in place of threads; 0: none."""
    prefetch: int = 2
    """Batches prepared ahead."""
    scaled_decoding: bool = True
    """Decode large training JPEGs to a half, quarter or eighth where that is not below the size needed: much faster
    there, and a level or two apart. Validation images are always decoded whole."""
    on_error: str = "raise"
    """What a training image that cannot be read does: "raise" ends the run with its name, "skip" puts another image of
    its batch in its place and tells (or leaves it out from the start, where not even its size is known). A validation
    image that cannot be read always ends the run."""
    max_skipped: float = 0.01
    """Share of the images, at least of an epoch's, that may be skipped before the run ends all the same; also the share
    that may be left out from the start."""


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule (DETR, section 4 and appendix A.4)."""

    learning_rate: float = 1e-4
    backbone_learning_rate: float = 1e-5
    """0 freezes the whole backbone."""
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.1
    """Largest global norm of the trainable parameters' gradient; 0: no clipping."""
    schedule: str = "step"
    """"step" (a tenth from drop_epoch on), "cosine" (to zero at the end) or "constant"."""
    drop_epoch: int = 200
    warmup_steps: int = 0
    """Optimiser steps over which the learning rates rise linearly from 0."""
    frozen: tuple[str, ...] = ("backbone/stem", "backbone/stages/0")
    """Parameters that are not trained, by the beginning of their path."""


@dataclass(kw_only=True)
class TrainingConfig:
    """The run: length, batch, log, checkpoints."""

    batch_size: int = 64
    """Images of an optimiser step, over all devices and accumulated parts."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after another, to save memory; the result is the whole batch's."""
    epochs: int | None = 300
    steps: int | None = None
    """Optimiser steps; takes the place of epochs where given."""
    seed: int = 0
    init_from: str = ""
    """A checkpoint to start from, of any kind that `detr_jax.weights.read_pretrained` reads; empty: start anew."""
    follow_checkpoint: bool = False
    """Build the model of `init_from` whatever ``model`` says, except for num_classes, dropout, dtype, and num_queries
    where it is not 0. Of a backbone alone, the backbone."""
    ema_decay: float = 0.0
    """Decay of the moving average of the parameters that is then evaluated; 0: none."""
    log_every: int = 50
    """Optimiser steps between two lines of the log."""
    fsdp: bool = False
    """Share parameters, their moving average and the optimiser's state out over the devices, as fully sharded data
    parallelism does, where each device holds them whole otherwise: less memory, more communication."""
    checkpoint_every: int = 1000
    """Optimiser steps between two checkpoints; there is always one at the end."""
    keep_checkpoints: int = 3
    """Of the newest; that of the best validation is kept beside them."""
    early_stop: int = 0
    """Validations in a row without a better AP after which the run ends; 0: never."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """Validation during training and at its end."""

    every_epochs: int = 1
    """Epochs between two validations; 0: at the end only."""
    batch_size: int = 8
    pictures: int = 12
    """Validation images drawn into predictions.png at the end of a run, and those of the snapshots."""
    snapshots: int = 32
    """Times of a run, denser in its beginning, at which what the model finds in those images is kept, from which
    ``detr-jax plot`` makes an animation; 0: none."""
    picture_threshold: float = 0.5
    """Lowest score of a drawn prediction."""


@dataclass(kw_only=True)
class Config:
    """Everything that a run needs to know."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


_DATA_ROOTS = {
    "coco": "the folder that holds train2017/, val2017/ and annotations/",
    "yolo": "the folder that holds data.yaml",
    "voc": "the folder that holds ImageSets/, JPEGImages/ and Annotations/, or one folder a split",
    "tfds": "",
    "shapes": "",
}
"""What ``data.root`` must be, by data set; nothing where it may be empty."""

_CHOICES = {
    "model.backbone.block": ("basic", "bottleneck"),
    "model.backbone.stem": ("imagenet", "small"),
    "model.backbone.norm": ("frozen_batch", "group"),
    "model.position_embedding": ("sine", "learned"),
    "model.dtype": ("float32", "bfloat16"),
    "loss.matcher": ("scipy", "device"),
    "data.dataset": tuple(_DATA_ROOTS),
    "data.on_error": ("raise", "skip"),
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
    for name in ("train_buckets", "val_buckets"):
        for bucket in getattr(data, name):
            if len(bucket) != 2 or any(side < 1 or side % model.backbone.stride for side in bucket):
                yield (
                    f"data.{name} holds {bucket}: each must be a (height, width) of positive multiples of "
                    f"{model.backbone.stride}, the stride of the backbone."
                )
    yield from _position_faults(model, (*data.train_buckets, *data.val_buckets))
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


def _source_faults(data: DataConfig) -> typing.Iterator[str]:
    if not data.root and _DATA_ROOTS[data.dataset]:
        yield f"data.root is empty: give {_DATA_ROOTS[data.dataset]}, as --config.data.root=FOLDER."
    if data.dataset == "tfds" and not data.tfds_name:
        yield "data.tfds_name is empty: give the name of a prepared data set, as --config.data.tfds_name=coco/2017."
    if data.dataset in ("voc", "tfds") and not data.train_split:
        yield "data.train_split is empty: give the split to train on, as --config.data.train_split=train."


def _position_faults(model: ModelConfig, buckets: Sequence[tuple[int, int]]) -> typing.Iterator[str]:
    for bucket in buckets if model.position_embedding == "learned" else ():
        if max(bucket) > LEARNED_CELLS * model.backbone.stride:
            yield (
                f"model.position_embedding='learned' reaches {LEARNED_CELLS} x {LEARNED_CELLS} cells of "
                f"{model.backbone.stride} pixels, but the data's canvas {bucket} is larger: use 'sine'."
            )


def check_canvases(model: ModelConfig, buckets: Sequence[tuple[int, int]]) -> None:
    """Checks canvases (height, width) in pixels that were chosen from the data, as `check` does those in the config.

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


def to_json(config: Any) -> str:
    """The configuration (or a part of it) as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote; fields that the text lacks take their defaults.

    Raises:
      ConfigError: the text is not JSON, or holds a field that does not exist or a value that cannot be.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"The configuration is not JSON: {error}.") from None
    config = _from_values(Config, values, "")
    faults = list(_field_faults(config, ""))
    if faults:
        raise ConfigError("\n".join(faults))
    return config


def _from_values(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{path.rstrip('.') or 'The configuration'} must be a JSON object, not {values!r}.")
    hints = typing.get_type_hints(cls)
    fields = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"{path}{name} is not a field of the configuration; here are {', '.join(sorted(hints))}.")
        if dataclasses.is_dataclass(hints[name]):
            value = _from_values(typing.cast(type, hints[name]), value, f"{path}{name}.")
        fields[name] = _lists_to_tuples(value)
    return cls(**fields)


def _lists_to_tuples(value: Any) -> Any:
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value


def unknown_field(path: str) -> str | None:
    """A sentence about a path such as ``training.stepz`` that names no field; None where it names one."""
    node: Any = Config
    for depth, name in enumerate(path.split(".")):
        hints = typing.get_type_hints(node) if dataclasses.is_dataclass(node) else {}
        if name not in hints:
            parent = ".".join(path.split(".")[:depth])
            close = difflib.get_close_matches(name, hints, n=1)
            there = f"{parent or 'the configuration'} has {', '.join(hints)}" if hints else f"{parent} is a value"
            hint = f"did you mean {'.'.join(filter(None, (parent, close[0])))}?" if close else f"{there}."
            return f"There is no configuration field {path}: {hint}"
        node = hints[name]
    return None


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ, as ``{"optimizer.learning_rate": (old, new)}``."""
    found: dict[str, tuple[Any, Any]] = {}
    for f in dataclasses.fields(old):
        name, before, after = f"{path}{f.name}", getattr(old, f.name), getattr(new, f.name)
        if dataclasses.is_dataclass(before):
            found |= differences(before, after, f"{name}.")
        elif before != after:
            found[name] = (before, after)
    return found
