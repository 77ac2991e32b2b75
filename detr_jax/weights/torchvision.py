"""torchvision's and timm's residual networks: a backbone without a detector, and a classifier that is ignored.

Most detectors store their backbone under the same names behind a prefix. `resnet_rules` therefore takes a prefix.
"""

from detr_jax.config import IMAGENET_MEAN, IMAGENET_STD
from detr_jax.weights.detr_config import check_resnet, infer_backbone_only
from detr_jax.weights.files import TensorFile
from detr_jax.weights.layout import Layout
from detr_jax.weights.metadata import Metadata
from detr_jax.weights.rules import Rule, batch_norm, convolution

STAGES, CONVOLUTIONS = 4, 3
"""Stages of a ResNet, and convolutions of a bottleneck block (basic blocks have two)."""


def resnet_rules(prefix: str = "") -> list[Rule]:
    """Rules for ``layer1.0.conv1``, ``layer1.0.bn1``, ``layer1.0.downsample.0`` ... behind a prefix."""
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


def read_metadata(file: TensorFile) -> Metadata:
    """Reads timm's config.json. torchvision's files have none."""
    metadata = Metadata()
    config = file.config or {}
    pretrained = config.get("pretrained_cfg") or {}
    metadata.check_backbone(config.get("architecture"), "config.json has architecture")
    mean, std = pretrained.get("mean") or IMAGENET_MEAN, pretrained.get("std") or IMAGENET_STD
    metadata.set_normalisation(mean, std, levels=1, where="pretrained_cfg of config.json")
    return metadata


TORCHVISION = Layout(
    kind="torchvision",
    rules=tuple(resnet_rules()),
    ignored=r".*\.num_batches_tracked|fc\..*",
    backbone_only=True,
    read_metadata=read_metadata,
    infer_config=infer_backbone_only,
    check=check_resnet,
)
"""Backbones of torchvision and timm."""
