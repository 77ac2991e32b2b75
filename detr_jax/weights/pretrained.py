"""Pretrained detectors and backbones of other frameworks, read into this package's parameters."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from detr_jax.checkpoints import CheckpointError, find_checkpoint, load_class_names, load_model
from detr_jax.config import BackboneConfig, ModelConfig
from detr_jax.data.coco_classes import COCO_CLASSES, NUM_COCO_LABELS
from detr_jax.models.detr import DETR, abstract_model
from detr_jax.models.resnet import PIXEL_MEAN, PIXEL_STD
from detr_jax.weights import huggingface
from detr_jax.weights.architecture import infer_backbone, infer_model
from detr_jax.weights.class_rows import CONTIGUOUS_OUTPUTS, spread_over_coco_ids
from detr_jax.weights.facebook import DETECTRON2, FACEBOOK
from detr_jax.weights.files import TensorFile, WeightsError, read_file
from detr_jax.weights.huggingface import HUGGINGFACE
from detr_jax.weights.layout import Layout, Sorted, sort_tensors
from detr_jax.weights.mmdetection import MMDETECTION
from detr_jax.weights.torchvision import TORCHVISION
from detr_jax.weights.trees import by_path, with_leaves

LAYOUTS = (FACEBOOK, DETECTRON2, HUGGINGFACE, MMDETECTION, TORCHVISION)

_RELATIVES = {  # names that only a relative of DETR has
    "sampling_offsets": "Deformable DETR or one of its heirs",
    "ca_qcontent_proj": "Conditional DETR",
    "denoising_generator": "DINO or DN-DETR",
}


@dataclass
class ImportedWeights:
    """What a checkpoint of another framework holds, in this package's terms."""

    source: Path
    kind: str
    """"facebook", "detectron2", "huggingface", "mmdetection", "torchvision" or "detr_jax"."""
    backbone: BackboneConfig
    config: ModelConfig | None
    """None where the checkpoint holds a backbone alone."""
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
      path: a ``.safetensors`` or PyTorch file, a directory as Hugging Face writes it, or one of this package.
      dilation: the model is a DC5 one. Only a config.json or the arguments in a training checkpoint tell it as well.
      mask_padding: goes into the configuration.
      num_heads: attention heads, which tensors do not show; by default what the checkpoint tells, else 8.

    Raises:
      WeightsError: the checkpoint cannot be read, is of a kind or model that is not known here, or has tensors
        missing, unexpected or of the wrong shape; all of them are in one message.
    """
    if own := _read_own(Path(path)):
        return own
    file = read_file(path)
    layout = recognise(file)
    tensors = sort_tensors(file.tensors, layout)
    told = _told(file, layout)
    dilation = dilation or bool(told.get("dilation"))
    num_heads = num_heads or told.get("num_heads") or ModelConfig().num_heads
    shapes = {path: array.shape for path, array in tensors.converted().items()}
    notes = _notes(tensors)

    if layout is TORCHVISION:
        backbone = infer_backbone(shapes, dilation=dilation)
        config, model = None, ModelConfig(backbone=backbone)
    else:
        config = model = infer_model(shapes, num_heads=num_heads, dilation=dilation, mask_padding=mask_padding)
        model.encoder_layers = told.get("encoder_layers", model.encoder_layers)
        model.decoder_layers = told.get("decoder_layers", model.decoder_layers)
    faults = [*_model_faults(file, layout, model)]
    if faults:
        raise WeightsError(f"{file.source} cannot be imported:\n" + "\n".join(f"  {fault}" for fault in faults))

    _, abstract = abstract_model(model)
    wanted = {path: leaf.shape for path, leaf in by_path(abstract).items() if config or path.startswith("backbone/")}
    tensors.check(wanted, f"{file.source} ({layout.kind}) is not the model that its tensors suggest")
    params = {path: np.ascontiguousarray(array) for path, array in tensors.converted().items()}

    class_names = told.get("class_names", {})
    if config and layout.contiguous_coco and config.num_classes + 1 == CONTIGUOUS_OUTPUTS and not class_names:
        params["class_head/kernel"], params["class_head/bias"] = spread_over_coco_ids(
            params["class_head/kernel"], params["class_head/bias"]
        )
        config.num_classes = params["class_head/bias"].size - 1
        class_names = dict(COCO_CLASSES)
        notes.append(
            f"The class head's {CONTIGUOUS_OUTPUTS} outputs (80 contiguous COCO classes and no object) became "
            f"{config.num_classes + 1}: labels are COCO's raw ids now."
        )
    if config and layout is FACEBOOK and config.num_classes == NUM_COCO_LABELS:
        class_names = dict(COCO_CLASSES)
        notes.append(f"Its {NUM_COCO_LABELS} classes are taken for COCO's raw ids, as the original's are.")
    return ImportedWeights(file.source, layout.kind, model.backbone, config, params, tensors.aside, class_names, notes)


def recognise(file: TensorFile) -> Layout:
    """The layout whose rules know the most of a file's tensors.

    Raises:
      WeightsError: a known relative of DETR, or nothing that is known here.
    """
    for name in file.tensors:
        for mark, relative in _RELATIVES.items():
            if mark in name:
                raise WeightsError(f"{file.source} is a checkpoint of {relative} (it has {name}), not of DETR.")

    def known(layout: Layout) -> int:
        return len(sort_tensors(file.tensors, layout).claims)

    best = max(LAYOUTS, key=known)
    if 2 * known(best) <= len(file.tensors):
        examples = ", ".join(list(file.tensors)[:3])
        raise WeightsError(
            f"{file.source} is no checkpoint of a kind that is known here ({', '.join(x.kind for x in LAYOUTS)}): "
            f"it has {len(file.tensors)} tensors such as {examples}."
        )
    return best


def _told(file: TensorFile, layout: Layout) -> dict[str, Any]:
    """What the checkpoint says beside its tensors."""
    told: dict[str, Any] = {}
    if layout is HUGGINGFACE and file.config is not None:
        config = file.config
        told = {
            "num_heads": config.get("encoder_attention_heads"),
            "dilation": huggingface.is_dilated(config),
            "class_names": {int(label): name for label, name in (config.get("id2label") or {}).items()},
        }
        told |= {name: config[name] for name in ("encoder_layers", "decoder_layers") if name in config}
    if layout is FACEBOOK and "args" in file.metadata:  # the training command's arguments
        arguments = vars(file.metadata["args"]) if hasattr(file.metadata["args"], "__dict__") else {}
        told = {"num_heads": arguments.get("nheads"), "dilation": arguments.get("dilation")}
    if layout is MMDETECTION:
        names = _mmdetection_classes(file.metadata)
        if names and names != tuple(COCO_CLASSES.values()):
            told["class_names"] = dict(enumerate(names))
    return told


def _mmdetection_classes(metadata: dict[str, Any]) -> tuple[str, ...]:
    meta = metadata.get("meta")
    dataset = meta.get("dataset_meta") if isinstance(meta, dict) else None
    if not isinstance(dataset, dict):
        return ()
    return tuple(dataset.get("classes") or dataset.get("CLASSES") or ())


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


def _model_faults(file: TensorFile, layout: Layout, model: ModelConfig) -> Iterator[str]:
    """Sentences about what tensors do not show and this package does not model."""
    if layout is HUGGINGFACE and file.config is not None:
        yield from huggingface.config_faults(file.config)
    if model.hidden_dim % model.num_heads:
        yield f"Its width of {model.hidden_dim} cannot be split into {model.num_heads} heads: give num_heads."
    if model.backbone.dilation and (model.backbone.block == "basic" or len(model.backbone.blocks) < 2):
        yield "dilation=True needs a backbone of bottleneck blocks (ResNet-50 or 101), and this one has basic blocks."
    if model.backbone.dilation and layout is MMDETECTION:
        yield "dilation=True is the original's DC5; mmdetection's dilates the first block too and is not modelled."
    for name, ours in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        if layout is DETECTRON2 and name in file.tensors:
            theirs = np.asarray(file.tensors[name], np.float64).ravel() / 255
            if theirs.shape != (3,) or not np.allclose(theirs, ours, atol=1e-3):
                yield f"Its {name} is {theirs * 255}, and images are normalised with {np.array(ours) * 255} here."


def _read_own(path: Path) -> ImportedWeights | None:
    """A workdir or checkpoint of this package; None where the path is something else."""
    try:
        checkpoint = find_checkpoint(path)
    except CheckpointError:
        return None
    model, config = load_model(checkpoint)
    params = {name: np.asarray(leaf) for name, leaf in by_path(nnx.as_pure(nnx.state(model))).items()}
    names = load_class_names(checkpoint)
    return ImportedWeights(checkpoint, "detr_jax", config.model.backbone, config.model, params, class_names=names)
