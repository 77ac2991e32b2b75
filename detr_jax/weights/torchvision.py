"""torchvision's residual networks: a backbone alone, without prefix, with a classifier that is ignored.

Its names live on inside most detectors, so the rules here take a prefix.
"""

from detr_jax.config import IMAGENET_MEAN, IMAGENET_STD
from detr_jax.weights.facts import Facts
from detr_jax.weights.files import TensorFile
from detr_jax.weights.layout import Layout, Rule, batch_norm, convolution

STAGES, CONVOLUTIONS = 4, 3


def resnet_rules(prefix: str = "") -> list[Rule]:
    """``layer1.0.conv1``, ``layer1.0.bn1``, ``layer1.0.downsample.0`` ... behind a prefix."""
    rules = [
        *convolution(f"{prefix}conv1", "backbone/stem/conv/conv"),
        *batch_norm(f"{prefix}bn1", "backbone/stem/conv/norm"),
    ]
    for stage in range(STAGES):
        block, ours = f"{prefix}layer{stage + 1}.*", f"backbone/stages/{stage}/*"
        for k in range(CONVOLUTIONS):
            rules += convolution(f"{block}.conv{k + 1}", f"{ours}/convs/{k}/conv")
            rules += batch_norm(f"{block}.bn{k + 1}", f"{ours}/convs/{k}/norm")
        rules += convolution(f"{block}.downsample.0", f"{ours}/shortcut/conv")
        rules += batch_norm(f"{block}.downsample.1", f"{ours}/shortcut/norm")
    return rules


TORCHVISION = Layout(
    kind="torchvision",
    rules=tuple(resnet_rules()),
    ignored=r".*\.num_batches_tracked|fc\..*",
)


def facts(file: TensorFile) -> Facts:
    """What timm's config.json says; torchvision's files have none."""
    found = Facts()
    config = file.config or {}
    pretrained = config.get("pretrained_cfg") or {}
    found.check_backbone(config.get("architecture"), "config.json has architecture")
    mean, std = pretrained.get("mean") or IMAGENET_MEAN, pretrained.get("std") or IMAGENET_STD
    found.normalise_by(mean, std, levels=1, where="pretrained_cfg of config.json")
    return found
