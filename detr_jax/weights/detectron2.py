"""The original's detectron2 wrapper, and what the run's config.yaml says.

The wrapper has everything under ``detr.``, detectron2's names in the backbone, the class head cut to the 80 used ids,
and buffers of its own.
"""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detr_jax.config import IMAGENET_MEAN
from detr_jax.weights.facebook import MASK_HEAD, other_rules, transformer_rules
from detr_jax.weights.facts import Facts, is_whole
from detr_jax.weights.files import TensorFile, WeightsError
from detr_jax.weights.layout import Layout, Rule, batch_norm, convolution
from detr_jax.weights.torchvision import CONVOLUTIONS, STAGES


def _detectron2_backbone(prefix: str) -> list[Rule]:
    """``stem.conv1``, ``res2.0.conv1``, ``res2.0.conv1.norm``, ``res2.0.shortcut`` ... behind a prefix."""
    rules = [
        *convolution(f"{prefix}stem.conv1", "backbone/stem/conv/conv"),
        *batch_norm(f"{prefix}stem.conv1.norm", "backbone/stem/conv/norm"),
    ]
    for stage in range(STAGES):
        block, ours = f"{prefix}res{stage + 2}.*", f"backbone/stages/{stage}/*"
        for there, here in [*((f"conv{k + 1}", f"convs/{k}") for k in range(CONVOLUTIONS)), ("shortcut", "shortcut")]:
            rules += convolution(f"{block}.{there}", f"{ours}/{here}/conv")
            rules += batch_norm(f"{block}.{there}.norm", f"{ours}/{here}/norm")
    return rules


DETECTRON2 = Layout(
    kind="detectron2",
    rules=(*_detectron2_backbone("backbone.0.backbone."), *transformer_rules(), *other_rules()),
    spellings=((r"^(detr\.)+", ""),),
    ignored=r".*\.num_batches_tracked|pixel_mean|pixel_std|criterion\..*",
    aside=MASK_HEAD,
    contiguous_coco=True,
)


def facts(file: TensorFile) -> Facts:
    """What config.yaml beside the checkpoint says, as detectron2 writes it, and the buffers of mean and deviation.

    Raises:
      WeightsError: config.yaml is not YAML.
    """
    found = Facts(rounding="nearest")
    config = _read_yaml(file.source.with_name("config.yaml"))
    if config is None:
        found.notes.append(
            "There is no config.yaml of detectron2: images are taken as the wrapper's own configuration takes them "
            "(800 pixels, at most 1333; heads: 8)."
        )
    config = config or {}
    found.num_heads = found.count(_field(config, "MODEL", "DETR", "NHEADS"), "config.yaml has MODEL.DETR.NHEADS")
    _read_sizes(config, found)
    _read_channels(file, config, found)
    for names, modelled in (
        (("MODEL", "META_ARCHITECTURE"), "Detr"),
        (("MODEL", "RESNETS", "STRIDE_IN_1X1"), False),
        (("MODEL", "RESNETS", "RES5_DILATION"), 1),
        (("MODEL", "RESNETS", "NUM_GROUPS"), 1),
    ):
        value = _field(config, *names)
        if value is not None and value != modelled:
            found.faults.append(f"config.yaml has {'.'.join(names)}={value!r}, and only {modelled!r} is modelled.")
    return found


def _read_yaml(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(f"{path} cannot be read as YAML ({str(error).splitlines()[0]}).") from None
    return content if isinstance(content, dict) and "MODEL" in content else None


def _field(config: Any, *names: str) -> Any:
    for name in names:
        config = config.get(name) if isinstance(config, dict) else None
    return config


def _read_sizes(config: dict[str, Any], found: Facts) -> None:
    """The image sizes for tests; a short side of 0 means no resizing."""
    short, long = (_field(config, "INPUT", f"{name}_SIZE_TEST") for name in ("MIN", "MAX"))
    found.short_side = found.short_side if short is None else short
    found.max_long_side = found.max_long_side if long is None else long
    if not is_whole(found.short_side, 0) or not is_whole(found.max_long_side):
        found.faults.append(
            f"config.yaml has INPUT.MIN_SIZE_TEST={short!r} and MAX_SIZE_TEST={long!r}: they must be pixels."
        )


def _read_channels(file: TensorFile, config: dict[str, Any], found: Facts) -> None:
    """Mean, deviation and order of channels; buffers of the checkpoint count more than config.yaml."""
    imagenet = 255 * np.array(IMAGENET_MEAN)
    defaults = {"pixel_mean": imagenet[::-1].tolist(), "pixel_std": [1.0] * 3}  # detectron2's own
    mean, std = (
        file.tensors[name].ravel().tolist()
        if name in file.tensors
        else _field(config, "MODEL", name.upper()) or (defaults[name] if config else None)
        for name in ("pixel_mean", "pixel_std")
    )
    order = _field(config, "INPUT", "FORMAT") or ("BGR" if config else None)
    if mean is None and std is None:
        return
    mean, std = mean or imagenet.tolist(), std or defaults["pixel_std"]
    found.normalise_by(mean, std, levels=255, where="Its pixel_mean and pixel_std")
    if found.faults:
        return
    if order is None:  # the two sets of means in use tell it
        order = next((o for o, x in (("RGB", imagenet), ("BGR", imagenet[::-1])) if np.allclose(mean, x, atol=1)), None)
    if order and not config:
        found.notes.append(f"By its pixel_mean it takes {order} images.")
    if order not in ("RGB", "BGR"):
        found.faults.append(
            f"Its pixel_mean is {mean}, of channels in an order that is not known: put the run's config.yaml, whose "
            "INPUT.FORMAT is RGB or BGR, beside the checkpoint."
        )
    found.bgr = order == "BGR"
