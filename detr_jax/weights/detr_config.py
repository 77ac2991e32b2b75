"""The configuration of a DETR, inferred from the shapes of its tensors, and checks of it. All DETR layouts share them.

`infer_resnet`, `layer_count` and `common_size` serve layouts of other families as well.
"""

import re
from collections import Counter
from collections.abc import Iterator

from detr_jax.config import Block, DetectorConfig, DETRConfig, MaskHeadConfig, PositionEmbedding, ResNetConfig
from detr_jax.weights.layout import Options, Shapes
from detr_jax.weights.metadata import Metadata


def infer_resnet(shapes: Shapes, *, dilation: bool = False) -> ResNetConfig:
    """The residual network with these tensors. Tensors do not show its dilation."""
    stages = layer_count(shapes, r"backbone/stages/(\d+)/")
    blocks = tuple(max(1, layer_count(shapes, rf"backbone/stages/{stage}/(\d+)/")) for stage in range(stages))
    bottleneck = any(re.match(r"backbone/stages/\d+/\d+/convs/2/", path) for path in shapes)
    return ResNetConfig(
        block=Block.BOTTLENECK if bottleneck or not stages else Block.BASIC,
        blocks=blocks or ResNetConfig().blocks,
        width=common_size(shapes, r"backbone/stem/.*", axis=-1, default=64),
        dilation=dilation,
    )


def infer_backbone_only(shapes: Shapes, metadata: Metadata, options: Options) -> DETRConfig:
    """`Layout.infer_config` for a residual network without a detector."""
    return DETRConfig(
        backbone=infer_resnet(shapes, dilation=options.dilation or metadata.dilation),
        mask_padding=options.mask_padding,
    )


def infer_detr(shapes: Shapes, metadata: Metadata, options: Options) -> DETRConfig:
    """`Layout.infer_config` for a DETR. The metadata's numbers of layers count more than the tensors' numbers."""
    encoder_layers = layer_count(shapes, r"encoder/layers/(\d+)/")
    decoder_layers = max(1, layer_count(shapes, r"decoder/layers/(\d+)/"))
    learned = any(path.startswith("position_embedding/") for path in shapes)
    return DETRConfig(
        backbone=infer_resnet(shapes, dilation=options.dilation or metadata.dilation),
        num_classes=common_size(shapes, r"class_head/.*", axis=-1, default=92) - 1,
        num_queries=common_size(shapes, r"object_queries", axis=0, default=100),
        hidden_dim=common_size(shapes, r".*coder/.*norm/(scale|bias)|object_queries", axis=-1, default=256),
        num_heads=options.num_heads or metadata.num_heads or DETRConfig().num_heads,
        encoder_layers=encoder_layers if metadata.encoder_layers is None else metadata.encoder_layers,
        decoder_layers=decoder_layers if metadata.decoder_layers is None else metadata.decoder_layers,
        feedforward_dim=common_size(shapes, r".*coder/layers/\d+/feed_forward/expand/.*", axis=-1, default=2048),
        pre_norm=any(path.startswith("encoder/norm/") for path in shapes),
        position_embedding=PositionEmbedding.LEARNED if learned else PositionEmbedding.SINE,
        masks=MaskHeadConfig() if any(path.startswith("mask_head/") for path in shapes) else None,
        mask_padding=options.mask_padding,
    )


def layer_count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number that the group of the pattern finds in the paths, 0 if it finds none."""
    return 1 + max((int(found[1]) for path in shapes if (found := re.match(pattern, path))), default=-1)


def common_size(shapes: Shapes, pattern: str, *, axis: int, default: int) -> int:
    """The most frequent size of an axis among the tensors whose whole path matches."""
    sizes = Counter(shape[axis] for path, shape in shapes.items() if re.fullmatch(pattern, path))
    return sizes.most_common(1)[0][0] if sizes else default


def check_resnet(config: DetectorConfig) -> Iterator[str]:
    """`Layout.check` for a residual network without a detector."""
    backbone = config.backbone
    assert isinstance(backbone, ResNetConfig)
    if backbone.dilation and (backbone.block == "basic" or len(backbone.blocks) < 2):
        yield "dilation=True needs a backbone of bottleneck blocks (ResNet-50 or 101), and this one has basic blocks."


def check_detr(config: DetectorConfig) -> Iterator[str]:
    """`Layout.check` for a DETR."""
    assert isinstance(config, DETRConfig)
    if config.hidden_dim % config.num_heads:
        yield f"Its width of {config.hidden_dim} cannot be split into {config.num_heads} heads: give num_heads."
    yield from check_resnet(config)


def check_no_dilation(config: DetectorConfig, framework: str) -> Iterator[str]:
    """Refuses the DC5 models of frameworks that dilate the last stage differently from the original."""
    if isinstance(config.backbone, ResNetConfig) and config.backbone.dilation:
        yield (
            f"dilation=True means the original's DC5 model. The DC5 model of {framework} dilates the first block of "
            "the last stage too, which is not modelled."
        )
