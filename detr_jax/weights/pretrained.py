"""`read_pretrained` and `load_pretrained`: detectors and backbones of other frameworks as our parameters."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from detr_jax.checkpoints import CheckpointError, find_checkpoint, load_class_names, load_model, load_stuff_labels
from detr_jax.config import IMAGENET_MEAN, IMAGENET_STD, BackboneBase, DataConfig, DetectorConfig
from detr_jax.data.coco_classes import COCO_STUFF
from detr_jax.models.detector import DetectorModule, abstract_model
from detr_jax.weights.files import TensorFile, WeightsError, read_file
from detr_jax.weights.layout import ConvertedModel, Layout, Options, Shapes
from detr_jax.weights.layouts import LAYOUTS
from detr_jax.weights.metadata import Metadata
from detr_jax.weights.names import check_is_path
from detr_jax.weights.recognition import recognise
from detr_jax.weights.sorting import SortedTensors
from detr_jax.weights.trees import by_path, with_leaves


@dataclass(frozen=True, kw_only=True)
class ImportedWeights:
    """The content of a checkpoint of another framework, in this package's terms."""

    source: Path
    """The checkpoint's file, or the folder of this package's checkpoint."""
    kind: str
    """`Layout.kind`: "facebook", "detectron2", "fundamentalvision", "huggingface", "mmdetection", "torchvision" or
    "detr_jax"."""
    backbone: BackboneBase
    """The backbone's configuration, with or without a detector."""
    config: DetectorConfig | None
    """The detector's configuration, or None if the checkpoint holds only a backbone."""
    data: DataConfig
    """How images are prepared. Only the fields of image sizes (`detr_jax.config.IMAGE_SIZES`) and ``val_buckets`` come
    from the checkpoint."""
    pixel_mean: tuple[float, float, float]
    """Mean by which red, green and blue in 0..1 are normalised. A detector's ``config`` has the same value."""
    pixel_std: tuple[float, float, float]
    """Standard deviation, likewise."""
    params: Mapping[str, np.ndarray]
    """Float32 arrays by path (`detr_jax.weights.trees`), frozen statistics included."""
    class_names: Mapping[int, str] = field(default_factory=dict)
    """Class name by label, empty if the checkpoint does not give names."""
    stuff_labels: frozenset[int] = frozenset()
    """Labels of the classes that are no things, such as sky. Panoptic models have them."""
    notes: tuple[str, ...] = ()
    """Sentences about what was assumed, changed or ignored."""


def load_pretrained(
    path: str | Path, dilation: bool = False, mask_padding: bool = True, *, layouts: Sequence[Layout] = LAYOUTS
) -> DetectorModule:
    """Loads a detector with the weights of a checkpoint of another framework or of this package.

    Args:
      path: a file or directory, as for `read_pretrained`.
      dilation: the model is a DC5 model, which its tensors do not show.
      mask_padding: keep padding out of the backbone, so that the predictions for an image do not depend on the batch
        that it is padded in. False gives the original's predictions on a padded batch.
      layouts: the kinds of checkpoints to recognise.

    Raises:
      WeightsError: the checkpoint cannot be read, does not fit, or holds only a backbone.
    """
    weights = read_pretrained(path, dilation=dilation, mask_padding=mask_padding, layouts=layouts)
    if weights.config is None:
        raise WeightsError(
            f"{weights.source} holds only a backbone, not a detector: it can only start the training of a detector."
        )
    graph, abstract = abstract_model(weights.config)
    # on the device, because jitted functions would transfer numpy arrays at every call
    return nnx.merge(graph, jax.tree.map(jnp.asarray, with_leaves(abstract, weights.params)))


def read_pretrained(
    path: str | Path,
    *,
    dilation: bool = False,
    mask_padding: bool = True,
    num_heads: int | None = None,
    layouts: Sequence[Layout] = LAYOUTS,
) -> ImportedWeights:
    """Reads a checkpoint of any known kind and checks every tensor in it.

    The kind is recognised from the names: the original DETR (detection, panoptic, or its detectron2 wrapper), the
    original Deformable DETR, either of them from Hugging Face or mmdetection 3.x, DINO from mmdetection 3.x, or a
    torchvision or timm ResNet. The path may also be a workdir or checkpoint of this package.

    Args:
      path: a ``.safetensors`` or PyTorch file, a directory as Hugging Face writes it, or a directory of this package.
        The files next to it are read too (config.json, preprocessor_config.json, config.yaml), and so are the settings
        in a training checkpoint.
      dilation: the model is a DC5 model. Tensors do not show it. A config.json, the arguments in a training checkpoint
        or the name of a released file may.
      mask_padding: value for the configuration.
      num_heads: attention heads, which tensors do not show. None: the checkpoint's number, or else 8.
      layouts: the kinds of checkpoints to recognise. ``(*LAYOUTS, MINE)`` adds one (`detr_jax.weights.layout.Layout`).

    Raises:
      WeightsError: the checkpoint cannot be read, is of an unknown kind or model, prepares images in a way that this
        package does not support, or has missing, unexpected or misshaped tensors. One message lists them all.
    """
    check_is_path(path)
    if own := _read_own(Path(path)):
        return own
    file = read_file(path)
    tensors = recognise(file, layouts)
    layout = tensors.layout
    metadata = layout.read_metadata(file)
    options = Options(dilation=dilation, mask_padding=mask_padding, num_heads=num_heads)
    config = _infer_config(tensors, metadata, options)
    _refuse(file, [*metadata.faults, *layout.check(config)])
    tensors.check(
        _shapes_of(config, layout), f"{file.source} ({layout.kind}) is not the model that its tensors suggest"
    )
    model = layout.finish(_converted(tensors, config, metadata), metadata)
    if not layout.backbone_only:
        _check_labels(file, model)
    data, data_notes = _image_preparation(metadata, model.config)
    return ImportedWeights(
        source=file.source,
        kind=layout.kind,
        backbone=model.config.backbone,
        config=None if layout.backbone_only else model.config,
        data=data,
        pixel_mean=model.config.pixel_mean,
        pixel_std=model.config.pixel_std,
        params=model.params,
        class_names=model.class_names,
        stuff_labels=model.stuff_labels,
        notes=(*_dropped_tensors(tensors), *metadata.notes, *model.notes, *data_notes),
    )


def _infer_config(tensors: SortedTensors, metadata: Metadata, options: Options) -> DetectorConfig:
    """The configuration that the layout infers, with the normalisation of the metadata."""
    shapes = {path: array.shape for path, array in tensors.converted().items()}
    config = tensors.layout.infer_config(shapes, metadata, options)
    return dataclasses.replace(config, pixel_mean=metadata.rgb_mean, pixel_std=metadata.rgb_std)


def _refuse(file: TensorFile, faults: list[str]) -> None:
    if faults:
        raise WeightsError(f"{file.source} cannot be imported:\n" + "\n".join(f"  {fault}" for fault in faults))


def _shapes_of(config: DetectorConfig, layout: Layout) -> Shapes:
    """Shapes by path of all parameters that a checkpoint of this layout must hold."""
    _, abstract = abstract_model(config)
    shapes = {path: leaf.shape for path, leaf in by_path(abstract).items()}
    return {path: s for path, s in shapes.items() if not layout.backbone_only or path.startswith("backbone/")}


def _converted(tensors: SortedTensors, config: DetectorConfig, metadata: Metadata) -> ConvertedModel:
    params = {path: np.ascontiguousarray(array) for path, array in tensors.converted().items()}
    names = metadata.class_names
    return ConvertedModel(config=config, params=params, class_names=names, stuff_labels=_stuff_among(names))


def _stuff_among(names: Mapping[int, str]) -> frozenset[int]:
    """The labels that have the id and the name of one of COCO's classes that are no things."""
    return frozenset(label for label, name in names.items() if COCO_STUFF.get(label) == name)


def _check_labels(file: TensorFile, model: ConvertedModel) -> None:
    """Refuses class names for labels that the class head does not have."""
    last = model.config.num_classes - 1
    if strange := [label for label in model.class_names if not 0 <= label <= last]:
        raise WeightsError(
            f"{file.source} cannot be imported: class names are given for the labels {strange[:5]}, and the class head "
            f"has only the labels 0 to {last}. The files belong to different models."
        )


def _dropped_tensors(tensors: SortedTensors) -> list[str]:
    """Sentences about the tensors that do not become parameters."""
    notes = []
    if tensors.ignored:
        words = ", ".join(sorted({re.sub(r".*\.(?=\w+$)", "", name) for name in tensors.ignored}))
        notes.append(f"{len(tensors.ignored)} tensors that the model does not need were ignored: {words}.")
    return notes


def _image_preparation(metadata: Metadata, config: DetectorConfig) -> tuple[DataConfig, list[str]]:
    """How images are prepared, and sentences about its differences from the paper."""
    data, paper, notes = metadata.data(), DataConfig(), []
    if not data.val_short_side:
        notes.append("It was made for images in their own size.")
    elif (data.val_short_side, data.max_long_side) != (paper.val_short_side, paper.max_long_side):
        notes.append(
            f"It was made for images with a short side of {data.val_short_side} pixels and a long side of at most "
            f"{data.max_long_side}."
        )
    if (config.pixel_mean, config.pixel_std) != (IMAGENET_MEAN, IMAGENET_STD):
        notes.append(f"Images are normalised by mean {config.pixel_mean} and deviation {config.pixel_std}, in 0..1.")
    if metadata.bucket is None:
        return data, notes
    stride, padded = config.stride, f"{metadata.bucket[0]} x {metadata.bucket[1]}"
    if any(side % stride for side in metadata.bucket):
        notes.append(
            f"It was made for images padded to {padded} pixels. This is ignored, because both sides must be multiples "
            f"of {stride}."
        )
        return data, notes
    notes.append(f"It was made for images padded to {padded} pixels.")
    if config.mask_padding:
        notes.append(
            "In its framework padding changes the predictions, in this package it does not: mask_padding=False gives "
            "the same predictions."
        )
    return dataclasses.replace(data, val_buckets=(metadata.bucket,)), notes


def _read_own(path: Path) -> ImportedWeights | None:
    """A workdir or checkpoint of this package, or None if the path is something else."""
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
        stuff_labels=load_stuff_labels(checkpoint),
    )
