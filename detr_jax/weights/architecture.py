"""The configuration of a model, read from the shapes of its tensors."""

import re
from collections import Counter
from collections.abc import Mapping

from detr_jax.config import BackboneConfig, Block, ModelConfig, PositionEmbedding

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes by our path."""


def infer_backbone(shapes: Shapes, *, dilation: bool = False) -> BackboneConfig:
    """The residual network with these tensors; dilation cannot be seen in them."""
    stages = _count(shapes, r"backbone/stages/(\d+)/")
    blocks = tuple(max(1, _count(shapes, rf"backbone/stages/{stage}/(\d+)/")) for stage in range(stages))
    bottleneck = any(re.match(r"backbone/stages/\d+/\d+/convs/2/", path) for path in shapes)
    return BackboneConfig(
        block=Block.BOTTLENECK if bottleneck or not stages else Block.BASIC,
        blocks=blocks or BackboneConfig().blocks,
        width=_agreed(shapes, r"backbone/stem/.*", axis=-1, default=64),
        dilation=dilation,
    )


def infer_model(shapes: Shapes, *, num_heads: int, dilation: bool, mask_padding: bool) -> ModelConfig:
    """The detector with these tensors.

    Where tensors disagree the majority decides, so that comparing them all with the model's shapes afterwards
    shows the few that are wrong.
    """
    learned = any(path.startswith("position_embedding/") for path in shapes)
    return ModelConfig(
        backbone=infer_backbone(shapes, dilation=dilation),
        num_classes=_agreed(shapes, r"class_head/.*", axis=-1, default=92) - 1,
        num_queries=_agreed(shapes, r"object_queries", axis=0, default=100),
        hidden_dim=_agreed(shapes, r".*coder/.*norm/(scale|bias)|object_queries", axis=-1, default=256),
        num_heads=num_heads,
        encoder_layers=_count(shapes, r"encoder/layers/(\d+)/"),
        decoder_layers=max(1, _count(shapes, r"decoder/layers/(\d+)/")),
        feedforward_dim=_agreed(shapes, r".*coder/layers/\d+/feed_forward/expand/.*", axis=-1, default=2048),
        pre_norm=any(path.startswith("encoder/norm/") for path in shapes),
        position_embedding=PositionEmbedding.LEARNED if learned else PositionEmbedding.SINE,
        mask_padding=mask_padding,
    )


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the highest number that the pattern's group finds."""
    return 1 + max((int(found[1]) for path in shapes if (found := re.match(pattern, path))), default=-1)


def _agreed(shapes: Shapes, pattern: str, *, axis: int, default: int) -> int:
    """The most frequent size of an axis among the tensors whose path matches."""
    sizes = Counter(shape[axis] for path, shape in shapes.items() if re.fullmatch(pattern, path))
    return sizes.most_common(1)[0][0] if sizes else default
