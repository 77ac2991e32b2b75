"""The configuration of a detector and its backbone. Defaults are those of DETR R50 on COCO."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

LEARNED_CELLS = 50  # rows and columns in the original's tables of learned positions

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue in 0..1."""


@dataclass(kw_only=True)
class BackboneConfig:
    """A residual network."""

    free_fields: ClassVar[tuple[str, ...]] = ("dilation",)
    """Fields in which a backbone may differ from the pretrained weights that it starts from, because its parameters are
    the same for every value."""

    block: str = "bottleneck"
    """"basic" (ResNet-18, 34) or "bottleneck" (ResNet-50, 101)."""
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage, one to four stages."""
    width: int = 64
    """Channels of the stem and of the first stage's 3x3 convolutions; doubled at every stage."""
    stem: str = "imagenet"
    """"imagenet" (7x7 convolution and max-pool, stride 4) or "small" (3x3 convolution, stride 2)."""
    norm: str = "frozen_batch"
    """"frozen_batch" for pretrained weights, "group" when training from scratch."""
    dilation: bool = False
    """DC5: the last stage keeps its resolution and is dilated instead."""

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
    num_classes: int = 91
    """Highest label plus 1 (COCO's raw ids reach 90); the head has one output more, for "no object". 0 when a training
    starts: from the data; the checkpoint holds the number."""
    num_queries: int = 100
    """More than the objects that an image can have. 0 when a training starts: those of the checkpoint that it follows,
    or else 100; the checkpoint holds the number."""
    hidden_dim: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward_dim: int = 2048
    dropout: float = 0.1
    pre_norm: bool = False
    """Layer norm before each sublayer in place of after it."""
    position_embedding: str = "sine"
    """"sine" or "learned"."""
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    """This and the next: mean and standard deviation by which red, green and blue in 0..1 are normalised, those of the
    pretrained weights."""
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    mask_padding: bool = True
    """Keep padding out of the backbone, so that it never changes an answer; False is the original on a padded batch."""
    dtype: str = "float32"
    """Compute type of backbone and encoder, "float32" or "bfloat16". Parameters, norms, residuals, softmax, the decoder
    (of few operations, but queries that hardly differ must stay so), heads and losses are float32 always."""
    remat: str = "none"
    """What the backward pass computes again in place of keeping it in memory: "none", "backbone" (every residual
    block), "transformer" (every layer) or "all". The result is the same."""
