"""Checkpoints of the original's detectron2 wrapper, and the config.yaml of its run.

The wrapper stores everything under ``detr.``, uses detectron2's names in the backbone, reduces the class head to the
80 ids that are in use, and adds buffers.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detr_jax.config import IMAGENET_MEAN, DetectorConfig
from detr_jax.weights.detr_config import check_detr, check_no_dilation, infer_detr
from detr_jax.weights.facebook import embedding_and_head_rules, mask_head_rules, transformer_rules
from detr_jax.weights.files import TensorFile, WeightsError
from detr_jax.weights.finishing import to_rgb_and_coco_ids
from detr_jax.weights.layout import Layout
from detr_jax.weights.metadata import Metadata, is_whole, nested
from detr_jax.weights.rules import Rule, batch_norm, convolution
from detr_jax.weights.torchvision import CONVOLUTIONS, STAGES
from detr_jax.wording import first_line
from detr_jax.yaml_files import compose_yaml, construct_yaml, read_yaml


def _detectron2_resnet_rules(prefix: str) -> list[Rule]:
    """Rules for ``stem.conv1``, ``res2.0.conv1``, ``res2.0.conv1.norm``, ``res2.0.shortcut`` ... behind a prefix."""
    rules = [
        *convolution(f"{prefix}stem.conv1", "backbone/stem/conv/conv"),
        *batch_norm(f"{prefix}stem.conv1.norm", "backbone/stem/conv/norm"),
    ]
    modules = {f"conv{k + 1}": f"convs/{k}" for k in range(CONVOLUTIONS)} | {"shortcut": "shortcut"}
    for stage in range(STAGES):
        block, our_block = f"{prefix}res{stage + 2}.*", f"backbone/stages/{stage}/*"
        for stored, ours in modules.items():
            rules += convolution(f"{block}.{stored}", f"{our_block}/{ours}/conv")
            rules += batch_norm(f"{block}.{stored}.norm", f"{our_block}/{ours}/norm")
    return rules


def read_metadata(file: TensorFile) -> Metadata:
    """Reads config.yaml next to the checkpoint, as detectron2 writes it, and the buffers of mean and deviation.

    Raises:
      WeightsError: config.yaml is not YAML.
    """
    metadata = Metadata(rounding="nearest")
    config = _read_yaml(file.source.with_name("config.yaml"))
    if config is None:
        metadata.notes.append(
            "There is no config.yaml of detectron2: the wrapper's defaults are assumed (800 pixels, at most 1333, 8 "
            "heads)."
        )
    config = config or {}
    metadata.num_heads = metadata.checked_count(
        nested(config, "MODEL", "DETR", "NHEADS"), "config.yaml has MODEL.DETR.NHEADS"
    )
    _read_sizes(config, metadata)
    _read_channels(file, config, metadata)
    for names, modelled in (
        (("MODEL", "META_ARCHITECTURE"), "Detr"),
        (("MODEL", "RESNETS", "STRIDE_IN_1X1"), False),
        (("MODEL", "RESNETS", "RES5_DILATION"), 1),
        (("MODEL", "RESNETS", "NUM_GROUPS"), 1),
    ):
        value = nested(config, *names)
        if value is not None and value != modelled:
            metadata.faults.append(f"config.yaml has {'.'.join(names)}={value!r}, and only {modelled!r} is modelled.")
    return metadata


def _read_yaml(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        node = compose_yaml(read_yaml(path).decode("utf-8-sig"), yaml.SafeLoader)
        content = construct_yaml(node, yaml.SafeLoader)
    except (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        raise WeightsError(f"{path} cannot be read as YAML ({first_line(error)}).") from None
    return content if isinstance(content, dict) and "MODEL" in content else None


def _read_sizes(config: dict[str, Any], metadata: Metadata) -> None:
    """Reads the image sizes for tests. A short side of 0 means that images are not resized."""
    short, long = (nested(config, "INPUT", f"{name}_SIZE_TEST") for name in ("MIN", "MAX"))
    metadata.short_side = metadata.short_side if short is None else short
    metadata.max_long_side = metadata.max_long_side if long is None else long
    if not is_whole(metadata.short_side, 0) or not is_whole(metadata.max_long_side):
        metadata.faults.append(
            f"config.yaml has INPUT.MIN_SIZE_TEST={short!r} and MAX_SIZE_TEST={long!r}: they must be pixels."
        )


def _read_channels(file: TensorFile, config: dict[str, Any], metadata: Metadata) -> None:
    """Reads mean, deviation and order of channels. Buffers of the checkpoint count more than config.yaml."""
    imagenet = 255 * np.array(IMAGENET_MEAN)
    defaults = {"pixel_mean": imagenet[::-1].tolist(), "pixel_std": [1.0] * 3}  # of detectron2
    mean, std = (
        file.tensors[name].ravel().tolist()
        if name in file.tensors
        else nested(config, "MODEL", name.upper()) or (defaults[name] if config else None)
        for name in ("pixel_mean", "pixel_std")
    )
    order = nested(config, "INPUT", "FORMAT") or ("BGR" if config else None)
    if mean is None and std is None:
        return
    mean, std = mean or imagenet.tolist(), std or defaults["pixel_std"]
    metadata.set_normalisation(mean, std, levels=255, where="Its pixel_mean and pixel_std")
    if metadata.faults:
        return
    if order is None:  # nearly all models use ImageNet's means, which differ by channel and so show the order
        order = next((o for o, x in (("RGB", imagenet), ("BGR", imagenet[::-1])) if np.allclose(mean, x, atol=1)), None)
    if order and not config:
        metadata.notes.append(f"Its pixel_mean shows that it takes {order} images.")
    if order not in ("RGB", "BGR"):
        metadata.faults.append(
            f"Its pixel_mean is {mean}, and the order of its channels is unknown: put the run's config.yaml, whose "
            "INPUT.FORMAT is RGB or BGR, next to the checkpoint."
        )
    metadata.bgr = order == "BGR"


def check(config: DetectorConfig) -> Iterator[str]:
    """Sentences about a configuration that cannot be built or is not modelled."""
    yield from check_detr(config)
    yield from check_no_dilation(config, "detectron2")


DETECTRON2 = Layout(
    kind="detectron2",
    rules=(
        *_detectron2_resnet_rules("backbone.0.backbone."),
        *transformer_rules(),
        *embedding_and_head_rules(),
        *mask_head_rules(),
    ),
    spellings=((r"^(detr\.)+", ""),),
    ignored=r".*\.num_batches_tracked|pixel_mean|pixel_std|criterion\..*",
    read_metadata=read_metadata,
    infer_config=infer_detr,
    check=check,
    finish=to_rgb_and_coco_ids,
)
"""Detectors of the original's detectron2 wrapper."""
