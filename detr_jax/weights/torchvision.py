"""torchvision's residual networks: a backbone alone, without prefix, with a classifier that is ignored.

Its names live on inside most detectors, so the rules here take a prefix.
"""

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
