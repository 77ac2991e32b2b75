"""The configuration of a detector and its backbone. Defaults are those of DETR R50 on COCO."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from detr_jax.config.fields import Choice, ranged

LEARNED_CELLS = 50  # rows and columns in the original's tables of learned positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue in 0..1."""


class Block(Choice):
    """The residual block."""

    BASIC = "basic"
    BOTTLENECK = "bottleneck"


class Stem(Choice):
    """The first layers of a residual network."""

    IMAGENET = "imagenet"
    SMALL = "small"


class Norm(Choice):
    """The normalisation of a residual network."""

    FROZEN_BATCH = "frozen_batch"
    GROUP = "group"


class PositionEmbedding(Choice):
    """The position embedding of the image's cells."""

    SINE = "sine"
    LEARNED = "learned"


class Precision(Choice):
    """The type that is computed in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Remat(Choice):
    """What the backward pass computes again instead of keeping it in memory."""

    NONE = "none"
    BACKBONE = "backbone"
    TRANSFORMER = "transformer"
    ALL = "all"


@dataclass(kw_only=True)
class BackboneConfig:
    """A residual network."""

    free_fields: ClassVar[tuple[str, ...]] = ("dilation",)
    """Fields in which a backbone may differ from the pretrained weights that it starts from, because its parameters are
    the same for every value."""

    block: Block = Block.BOTTLENECK
    """Residual block: "basic" (ResNet-18, 34) or "bottleneck" (ResNet-50, 101)."""
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage, one to four stages."""
    width: int = 64
    """Channels of the stem and of the first stage's 3x3 convolutions; doubled at every stage."""
    stem: Stem = Stem.IMAGENET
    """First layers: "imagenet" (7x7 convolution and max-pool, stride 4) or "small" (3x3 convolution, stride 2, for
    small images)."""
    norm: Norm = Norm.FROZEN_BATCH
    """Normalisation: "frozen_batch" for pretrained weights, "group" when training from scratch."""
    dilation: bool = False
    """DC5: the last stage keeps its resolution and is dilated instead, for small objects at twice the cost. Off by
    default."""

    default_frozen: ClassVar[tuple[str, ...]] = ("stem", "stages/0")
    """Parameters inside the backbone that are not trained if ``optimizer.frozen`` is None, by the beginning of their
    path: the first layers, which are pretrained and general (the paper's)."""

    @property
    def expansion(self) -> int:
        """Output channels of a block over its inner channels."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def out_channels(self) -> int:
        """Channels of the last stage."""
        return self.width * 2 ** (len(self.blocks) - 1) * self.expansion

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the last stage."""
        return (4 if self.stem == "imagenet" else 2) * 2 ** (len(self.blocks) - 1 - self.dilation)

    def faults(self, path: str) -> Iterator[str]:
        """Fields that contradict one another."""
        if not 1 <= len(self.blocks) <= 4:
            yield f"{path}blocks={self.blocks} must hold one to four positive numbers, one per stage."
        if self.dilation and (self.block == "basic" or len(self.blocks) < 2):
            yield f"{path}dilation=True needs bottleneck blocks and two stages or more: use a ResNet-50 or 101."
        if self.norm == "group" and self.width % 4:
            yield f"{path}width={self.width} must be a multiple of 4 with group norm."


@dataclass(kw_only=True)
class ModelConfig:
    """The detector (DETR, section 3.2 and appendix A)."""

    free_fields: ClassVar[tuple[str, ...]] = (
        *("encoder_layers", "decoder_layers"),  # the parameters of a layer are the same for every number of layers
        *("dropout", "mask_padding", "dtype", "remat"),
    )
    """Fields in which a detector may differ from the pretrained weights that it starts from, because parameters of the
    same path fit each other for every value."""
    resizing_fields: ClassVar[Mapping[str, str]] = {"num_classes": r"class_head/.*", "num_queries": "object_queries"}
    """Fields that may differ as well, each with a regular expression for the paths of the parameters that it resizes.
    Those parameters start from their own initial values."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The network that turns an image into features."""
    num_classes: int = ranged(91, least=0)
    """Highest label plus 1 (COCO's raw ids reach 90); the head has one output more, for "no object". 0 when a training
    starts: from the data; the checkpoint holds the number."""
    num_queries: int = ranged(100, least=0)
    """More than the objects that an image can have. 0 when a training starts: those of the checkpoint that it follows,
    or else 100; the checkpoint holds the number."""
    hidden_dim: int = 256
    """Channels of the transformer, a multiple of 4 and of `num_heads` (the paper's)."""
    num_heads: int = 8
    """Heads of an attention (the paper's: 8 of 32 channels)."""
    encoder_layers: int = ranged(6, least=0)
    """Layers of the encoder (the paper's 6); 0: none."""
    decoder_layers: int = 6
    """Layers of the decoder (the paper's)."""
    feedforward_dim: int = 2048
    """Hidden channels of the feed-forward networks (the paper's)."""
    dropout: float = ranged(0.1, below=1)
    """Probability of dropout in the transformer during training (the paper's)."""
    pre_norm: bool = False
    """Layer norm before each sublayer instead of after it. Off by default, as in the paper."""
    position_embedding: PositionEmbedding = PositionEmbedding.SINE
    """Position embedding of the feature map: "sine" (fixed, and the paper's) or "learned" (a row and a column for each
    of 50 cells)."""
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of red, green and blue in 0..1, which is subtracted from images. The default is ImageNet's, as the
    pretrained weights expect."""
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of red, green and blue in 0..1, by which images are divided. The default is ImageNet's, as the
    pretrained weights expect."""
    mask_padding: bool = True
    """Keep padding out of the backbone, so that it never changes an answer; False is the original on a padded batch."""
    dtype: Precision = Precision.FLOAT32
    """Compute type of backbone and encoder, "float32" or "bfloat16". Parameters, norms, residuals, softmax, decoder,
    heads and losses are always float32. The decoder stays float32 because it is cheap, and in bfloat16 the nearly equal
    queries of an untrained model would collapse."""
    remat: Remat = Remat.NONE
    """What the backward pass computes again instead of keeping it in memory: "none" (the default, the fastest),
    "backbone" (every residual block), "transformer" (every layer) or "all". The result is the same."""

    def faults(self, path: str) -> Iterator[str]:
        """Fields that contradict one another."""
        if self.hidden_dim % self.num_heads:
            yield (
                f"{path}num_heads={self.num_heads} must divide {path}hidden_dim={self.hidden_dim}; the paper has 8 "
                "heads of 32."
            )
        if min(self.pixel_std) <= 0:
            yield f"{path}pixel_std={self.pixel_std} must hold three numbers above 0, as images are divided by them."
        if self.hidden_dim % 4:
            yield f"{path}hidden_dim={self.hidden_dim} must be a multiple of 4 for the position embedding."
