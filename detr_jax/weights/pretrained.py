"""Pretrained detectors and backbones of other frameworks, read into this package's parameters."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from detr_jax.checkpoints import CheckpointError, find_checkpoint, load_class_names, load_model
from detr_jax.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    BackboneBase,
    DataConfig,
    DetectorConfig,
    ModelConfig,
    ResNetConfig,
)
from detr_jax.data.coco_classes import COCO_CLASSES
from detr_jax.models.detector import abstract_model
from detr_jax.models.detr import DETR
from detr_jax.weights import detectron2, facebook, huggingface, mmdetection, torchvision
from detr_jax.weights.architecture import infer_backbone, infer_model
from detr_jax.weights.class_rows import CONTIGUOUS_OUTPUTS, spread_over_coco_ids
from detr_jax.weights.detectron2 import DETECTRON2
from detr_jax.weights.facebook import FACEBOOK
from detr_jax.weights.facts import Facts
from detr_jax.weights.files import TensorFile, WeightsError, read_file
from detr_jax.weights.huggingface import HUGGINGFACE
from detr_jax.weights.layout import Layout, Sorted
from detr_jax.weights.mmdetection import MMDETECTION
from detr_jax.weights.names import check_is_path
from detr_jax.weights.recognition import recognise
from detr_jax.weights.torchvision import TORCHVISION
from detr_jax.weights.trees import by_path, with_leaves

_FACTS: dict[str, Callable[[TensorFile], Facts]] = {
    layout.kind: facts
    for layout, facts in (
        (FACEBOOK, facebook.facts),
        (DETECTRON2, detectron2.facts),
        (HUGGINGFACE, huggingface.facts),
        (MMDETECTION, mmdetection.facts),
        (TORCHVISION, torchvision.facts),
    )
}
_STEM = "backbone/stem/conv/conv/kernel"


@dataclass
class ImportedWeights:
    """What a checkpoint of another framework holds, in this package's terms."""

    source: Path
    kind: str
    """"facebook", "detectron2", "huggingface", "mmdetection", "torchvision" or "detr_jax"."""
    backbone: BackboneBase
    config: DetectorConfig | None
    """None if the checkpoint holds only a backbone."""
    data: DataConfig
    """How images are prepared: of its fields, only those of image sizes (`detr_jax.config.IMAGE_SIZES`) and
    ``val_buckets`` say something."""
    pixel_mean: tuple[float, float, float]
    """By which images are normalised, of red, green and blue in 0..1; with a detector, ``config`` has it too."""
    pixel_std: tuple[float, float, float]
    params: dict[str, np.ndarray]
    """Float32 arrays by path (`detr_jax.weights.trees`), frozen statistics included."""
    mask_head: dict[str, np.ndarray] = field(default_factory=dict)
    """The tensors of a panoptic checkpoint's mask head, with the original's names and PyTorch's shapes."""
    class_names: dict[int, str] = field(default_factory=dict)
    """Name by label, where the checkpoint tells it."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what was assumed, changed or left out."""


def load_pretrained(path: str | Path, dilation: bool = False, mask_padding: bool = True) -> DETR:
    """A detector with the weights of a checkpoint of another framework, or of this package.

    Args:
      path: a file or directory, as for `read_pretrained`.
      dilation: the model is a DC5 one, which its tensors do not show.
      mask_padding: keep padding out of the backbone, so that images in a padded batch get the answers that they get
        alone; False is the original on a padded batch, to the digit.

    Raises:
      WeightsError: the checkpoint cannot be read, does not fit, or holds a backbone alone.
    """
    weights = read_pretrained(path, dilation=dilation, mask_padding=mask_padding)
    if weights.config is None:
        raise WeightsError(
            f"{weights.source} holds a backbone alone, not a detector: it can only start the training of one."
        )
    graph, abstract = abstract_model(weights.config)
    # on the device, as programs would send arrays of numpy there at every call
    return nnx.merge(graph, jax.tree.map(jnp.asarray, with_leaves(abstract, weights.params)))


def read_pretrained(
    path: str | Path, *, dilation: bool = False, mask_padding: bool = True, num_heads: int | None = None
) -> ImportedWeights:
    """Reads a checkpoint, whichever kind it is, and checks every tensor in it.

    The kind is recognised from the names: the original (detection, panoptic, or its detectron2 wrapper),
    Hugging Face, mmdetection 3.x, a torchvision or timm ResNet alone; or a workdir or checkpoint of this package.

    Args:
      path: a ``.safetensors`` or PyTorch file, a directory as Hugging Face writes it, or one of this package. What
        stands beside the tensors is read too: config.json, preprocessor_config.json, config.yaml, and what a training
        checkpoint holds of its settings.
      dilation: the model is a DC5 one. Only a config.json, the arguments in a training checkpoint, or the name of a
        released file tell it as well.
      mask_padding: goes into the configuration.
      num_heads: attention heads, which tensors do not show; by default what the checkpoint tells, else 8.

    Raises:
      WeightsError: the checkpoint cannot be read, is of a kind or model that is not known here, prepares images in a
        way that this package does not, or has tensors missing, unexpected or of the wrong shape; all of them are in
        one message.
    """
    check_is_path(path)
    if own := _read_own(Path(path)):
        return own
    file = read_file(path)
    tensors = recognise(file)
    layout = tensors.layout
    facts = _FACTS[layout.kind](file)
    shapes = {path: array.shape for path, array in tensors.converted().items()}
    notes = [*_notes(tensors), *facts.notes]

    dilation = dilation or facts.dilation
    if layout is TORCHVISION:
        config, model = None, ModelConfig(backbone=infer_backbone(shapes, dilation=dilation))
    else:
        num_heads = num_heads or facts.num_heads or ModelConfig().num_heads
        config = model = infer_model(shapes, num_heads=num_heads, dilation=dilation, mask_padding=mask_padding)
        model.encoder_layers = _or(facts.encoder_layers, model.encoder_layers)
        model.decoder_layers = _or(facts.decoder_layers, model.decoder_layers)
    faults = [*facts.faults, *_model_faults(layout, model)]
    if faults:
        raise WeightsError(f"{file.source} cannot be imported:\n" + "\n".join(f"  {fault}" for fault in faults))

    _, abstract = abstract_model(model)
    wanted = {path: leaf.shape for path, leaf in by_path(abstract).items() if config or path.startswith("backbone/")}
    tensors.check(wanted, f"{file.source} ({layout.kind}) is not the model that its tensors suggest")
    params = {path: np.ascontiguousarray(array) for path, array in tensors.converted().items()}
    notes += _take_channels(facts, model, params)
    class_names = facts.class_names
    if config:
        if layout.contiguous_coco and config.num_classes + 1 == CONTIGUOUS_OUTPUTS and not class_names:
            class_names = dict(COCO_CLASSES)
            notes.append(_spread_classes(config, params))
        if strange := [label for label in class_names if not 0 <= label < config.num_classes]:
            raise WeightsError(
                f"{file.source} cannot be imported: class names are given for the labels {strange[:5]}, and the class "
                f"head has only the labels 0 to {config.num_classes - 1}. The files are of different models."
            )
    data, more = _data(facts, model)
    return ImportedWeights(
        source=file.source,
        kind=layout.kind,
        backbone=model.backbone,
        config=config,
        data=data,
        pixel_mean=model.pixel_mean,
        pixel_std=model.pixel_std,
        params=params,
        mask_head=tensors.aside,
        class_names=class_names,
        notes=[*notes, *more],
    )


def _take_channels(facts: Facts, model: ModelConfig, params: dict[str, np.ndarray]) -> list[str]:
    """Puts mean and deviation into the configuration, and makes a model for blue, green, red one for RGB."""
    model.pixel_mean, model.pixel_std = facts.pixel_mean, facts.pixel_std
    if not facts.bgr:
        return []
    model.pixel_mean, model.pixel_std = facts.pixel_mean[::-1], facts.pixel_std[::-1]
    params[_STEM] = np.ascontiguousarray(params[_STEM][:, :, ::-1])
    return ["It was trained on blue, green, red: its first convolution was turned to take red, green, blue."]


def _spread_classes(config: ModelConfig, params: dict[str, np.ndarray]) -> str:
    """Makes a class head for contiguous COCO classes one for raw ids, and says so."""
    params["class_head/kernel"], params["class_head/bias"] = spread_over_coco_ids(
        params["class_head/kernel"], params["class_head/bias"]
    )
    config.num_classes = params["class_head/bias"].size - 1
    return (
        f"The class head's {CONTIGUOUS_OUTPUTS} outputs (80 contiguous COCO classes and no object) became "
        f"{config.num_classes + 1}: labels are COCO's raw ids now."
    )


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _data(facts: Facts, model: ModelConfig) -> tuple[DataConfig, list[str]]:
    """How images are prepared, and sentences about what of it differs from the paper."""
    data, paper, notes = facts.data(), DataConfig(), []
    if not data.val_short_side:
        notes.append("It was made for images in their own size.")
    elif (data.val_short_side, data.max_long_side) != (paper.val_short_side, paper.max_long_side):
        notes.append(
            f"It was made for images with a short side of {data.val_short_side} pixels and a long side of at most "
            f"{data.max_long_side}."
        )
    if (model.pixel_mean, model.pixel_std) != (IMAGENET_MEAN, IMAGENET_STD):
        notes.append(f"Images are normalised by mean {model.pixel_mean} and deviation {model.pixel_std}, in 0..1.")
    if facts.bucket is None:
        return data, notes
    stride, padded = model.backbone.stride, f"{facts.bucket[0]} x {facts.bucket[1]}"
    if any(side % stride for side in facts.bucket):
        notes.append(
            f"It was made for images padded to {padded} pixels, not followed as they are no multiples of {stride}."
        )
        return data, notes
    notes.append(f"It was made for images padded to {padded} pixels.")
    if model.mask_padding:
        notes.append(
            "There, padding changes its answers, and here it does not: mask_padding=False gives the same ones."
        )
    return dataclasses.replace(data, val_buckets=(facts.bucket,)), notes


def _notes(tensors: Sorted) -> list[str]:
    notes = []
    if tensors.ignored:
        notes.append(f"{len(tensors.ignored)} tensors that mean nothing here were left out: {_names(tensors.ignored)}.")
    if tensors.aside:
        notes.append(f"{len(tensors.aside)} tensors of a mask head were set aside.")
    return notes


def _names(names: list[str]) -> str:
    """The distinct last words of names."""
    return ", ".join(sorted({re.sub(r".*\.(?=\w+$)", "", name) for name in names}))


def _model_faults(layout: Layout, model: ModelConfig) -> Iterator[str]:
    """Sentences about models that cannot be."""
    if model.hidden_dim % model.num_heads:
        yield f"Its width of {model.hidden_dim} cannot be split into {model.num_heads} heads: give num_heads."
    backbone = model.backbone
    assert isinstance(backbone, ResNetConfig), "the only backbone that files are read for"
    if backbone.dilation and (backbone.block == "basic" or len(backbone.blocks) < 2):
        yield "dilation=True needs a backbone of bottleneck blocks (ResNet-50 or 101), and this one has basic blocks."
    if backbone.dilation and layout in (MMDETECTION, DETECTRON2):
        yield f"dilation=True is the original's DC5; {layout.kind}'s dilates the first block too and is not modelled."


def _read_own(path: Path) -> ImportedWeights | None:
    """A workdir or checkpoint of this package; None if the path is something else."""
    try:
        checkpoint = find_checkpoint(path)
    except CheckpointError:
        return None
    model, config = load_model(checkpoint)
    params = {name: np.asarray(leaf) for name, leaf in by_path(nnx.as_pure(nnx.state(model))).items()}
    return ImportedWeights(
        source=checkpoint,
        kind="detr_jax",
        backbone=config.model.backbone,
        config=config.model,
        data=config.data,
        pixel_mean=config.model.pixel_mean,
        pixel_std=config.model.pixel_std,
        params=params,
        class_names=load_class_names(checkpoint),
    )
