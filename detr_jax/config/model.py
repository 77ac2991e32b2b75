"""The configuration of a detector and its backbone. Each class builds what it describes.

Defaults are those of DETR R50 on COCO.
"""

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from detr_jax.config.fields import Choice, ranged
from detr_jax.config.masks import MOST_ADAPTERS, MaskHeadConfig

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx

    from detr_jax.models.detector import DetectorModule

MOST_LAYERS = 200
"""Layers of an encoder or a decoder, and blocks of a backbone's stage. More is a mistake, or takes hours to build."""
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


class Classification(Choice):
    """What the outputs of the class head mean."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


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
class BackboneBase:
    """The base class of backbones. A backbone of one's own is a subclass with `build`, `channels` and `strides`."""

    default_frozen: ClassVar[tuple[str, ...]] = ()
    """Parameters inside the backbone that are not trained if ``optimizer.frozen`` is None, by the beginning of their
    path."""
    free_fields: ClassVar[tuple[str, ...]] = ()
    """Fields in which a backbone may differ from the pretrained weights that it starts from, because its parameters are
    the same for every value."""

    @property
    @abstractmethod
    def channels(self) -> tuple[int, ...]:
        """Channels of each level that the backbone returns, from fine to coarse."""
        raise NotImplementedError(f"{type(self).__name__} must define the property channels.")

    @property
    @abstractmethod
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image per cell of each level, from fine to coarse."""
        raise NotImplementedError(f"{type(self).__name__} must define the property strides.")

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the coarsest level. The sides of every bucket are multiples of it."""
        return self.strides[-1]

    @property
    def needs_pretrained(self) -> bool:
        """Whether the backbone hardly trains from its initial values, so that a run without weights gets a warning."""
        return False

    @abstractmethod
    def build(self, *, dtype: Any, remat: bool, rngs: "nnx.Rngs") -> "nnx.Module":
        """Build the backbone.

        Args:
          dtype: what it computes in; parameters are float32.
          remat: whether the backward pass computes it again instead of keeping its activations.

        Returns:
          A module that maps images [B, H, W, 3] float32 and valid sizes [B, 2] (or None) to a tuple with one
          `detr_jax.models.FeatureMap` per level, from fine to coarse.
        """
        raise NotImplementedError(f"{type(self).__name__} must define build(self, *, dtype, remat, rngs).")


@dataclass(kw_only=True)
class ResNetConfig(BackboneBase):
    """A residual network."""

    free_fields = ("dilation",)

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
    """The first layers, which are pretrained and general (the paper's)."""

    @property
    def expansion(self) -> int:
        """Output channels of a block over its inner channels."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width * 2**stage * self.expansion for stage in range(len(self.blocks)))

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image per cell of each stage."""
        first, last = (4 if self.stem == "imagenet" else 2), len(self.blocks) - 1
        return tuple(first * 2 ** (stage - (self.dilation and stage == last)) for stage in range(len(self.blocks)))

    @property
    def needs_pretrained(self) -> bool:
        """Frozen batch norm has no statistics without pretrained weights."""
        return self.norm == "frozen_batch"

    def build(self, *, dtype: Any, remat: bool, rngs: "nnx.Rngs") -> "nnx.Module":
        """Build the `detr_jax.models.ResNet`."""
        from detr_jax.models.resnet import ResNet

        return ResNet(self, dtype=dtype, remat=remat, rngs=rngs)

    def faults(self, path: str) -> Iterator[str]:
        """Fields that contradict one another."""
        if not 1 <= len(self.blocks) <= 4:
            yield f"{path}blocks={self.blocks[:5]} must hold one to four positive numbers, one per stage."
        if max(self.blocks, default=0) > MOST_LAYERS:
            yield f"{path}blocks={self.blocks} must hold at most {MOST_LAYERS} blocks per stage."
        if self.dilation and (self.block == "basic" or len(self.blocks) < 2):
            yield f"{path}dilation=True needs bottleneck blocks and two stages or more: use a ResNet-50 or 101."
        if self.norm == "group" and self.width % 4:
            yield f"{path}width={self.width} must be a multiple of 4 with group norm."


BackboneConfig = ResNetConfig
"""The name of `ResNetConfig` in earlier versions."""


@dataclass(kw_only=True)
class DetectorConfig:
    """The base class of detectors. A detector of one's own is a subclass with `build`."""

    run_fields: ClassVar[tuple[str, ...]] = ("dtype", "remat")
    """Fields that a run may set otherwise than the checkpoint that it follows."""
    added_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that a run always sets itself, also if it follows a checkpoint. They add parameters, so they cannot change
    when the run is resumed."""
    free_fields: ClassVar[tuple[str, ...]] = ("mask_padding", "dtype", "remat")
    """Fields in which a detector may differ from the pretrained weights that it starts from, because parameters of the
    same path fit each other for every value."""
    resizing_fields: ClassVar[Mapping[str, str]] = {
        "num_classes": r"class_head/.*",
        "classification": r"class_head/.*",
        "num_queries": "object_queries",
    }
    """Fields that may differ as well, each with a regular expression for the paths of the parameters that it resizes.
    Those parameters start from their own initial values."""
    least_images: ClassVar[int] = 0
    """Images with which the detector learns from scratch; a run on fewer logs a warning."""

    backbone: BackboneBase = field(default_factory=ResNetConfig)
    """The network that turns an image into features."""
    num_classes: int = ranged(91, least=0)
    """Highest label plus 1 (COCO's raw ids reach 90); the head has one output more, for "no object". 0 when a training
    starts: from the data; the checkpoint holds the number."""
    num_queries: int = ranged(100, least=0)
    """More than the objects that an image can have. 0 when a training starts: those of the checkpoint that it follows,
    or else a number that suits the data; the checkpoint holds the number."""
    classification: Classification = Classification.SOFTMAX
    """What the outputs of the class head mean: "softmax" (over the classes and "no object", the paper's) or "sigmoid"
    (an own probability for each class; needs a loss such as `SigmoidFocal`)."""
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

    def kept_part(self, path: str, given: "np.ndarray", shape: tuple[int, ...]) -> "np.ndarray | None":
        """The initial value of a parameter that `resizing_fields` resizes, if a part of the checkpoint's is kept.

        Args:
          path: of the parameter.
          given: the checkpoint's value.
          shape: the shape in the model.

        Returns:
          An array of ``shape``, or None: the parameter starts from its own initial value.
        """
        return None

    @property
    def stride(self) -> int:
        """The number of pixels that the sides of every bucket are multiples of."""
        return self.backbone.stride

    @property
    def default_slow(self) -> tuple[str, ...]:
        """Parameters outside the backbone that learn more slowly if ``optimizer.slow_parameters`` is None, by a part of
        their path."""
        return ()

    @property
    def num_logits(self) -> int:
        """Outputs of the class head per query: the classes, and with "softmax" also "no object"."""
        return self.num_classes + (self.classification == "softmax")

    @property
    def max_detections(self) -> int:
        """The number of detections per image, before any threshold: by default one per query."""
        return self.num_queries

    def with_room_for(self, objects: int) -> Self:
        """The configuration with at least so many detections per image, if only its fields limit them."""
        return self

    @property
    def largest_bucket(self) -> int | None:
        """The longest side in pixels that a bucket may have. None: any."""
        return None

    @property
    def mask_stride(self) -> int | None:
        """Pixels of the image per cell of a predicted mask. None: the detector predicts no masks."""
        return None

    @property
    def mask_block(self) -> int:
        """Masks of an image that are computed at a time."""
        return 1

    @abstractmethod
    def build(self, *, rngs: "nnx.Rngs") -> "DetectorModule":
        """Build the detector with initial values."""
        raise NotImplementedError(f"{type(self).__name__} must define build(self, *, rngs).")

    @property
    def least_arrays(self) -> int:
        """The least number of arrays of parameters that the detector has, one per layer. 0: not known.

        A checkpoint with fewer arrays cannot hold the detector, which is then not built.
        """
        return 0

    def faults(self, path: str) -> Iterator[str]:
        """Fields that contradict one another."""
        if min(self.pixel_std) <= 0:
            yield f"{path}pixel_std={self.pixel_std} must hold three numbers above 0, as images are divided by them."


@dataclass(kw_only=True)
class TransformerConfig(DetectorConfig):
    """The base class of detectors with a transformer encoder and decoder."""

    run_fields = ("dropout", "masks.block_size", *DetectorConfig.run_fields)
    added_fields = ("masks",)
    free_fields = ("encoder_layers", "decoder_layers", "dropout", "masks", *DetectorConfig.free_fields)

    hidden_dim: int = 256
    """Channels of the transformer, a multiple of 4 and of `num_heads` (the paper's)."""
    num_heads: int = 8
    """Heads of an attention (the paper's: 8 of 32 channels)."""
    encoder_layers: int = ranged(6, least=0, most=MOST_LAYERS)
    """Layers of the encoder (the paper's 6); 0: none."""
    decoder_layers: int = ranged(6, least=1, most=MOST_LAYERS)
    """Layers of the decoder (the paper's)."""
    feedforward_dim: int = 2048
    """Hidden channels of the feed-forward networks (the paper's)."""
    dropout: float = ranged(0.1, below=1)
    """Probability of dropout in the transformer during training (the paper's)."""
    pre_norm: bool = False
    """Layer norm before each sublayer instead of after it. Off by default, as in the paper."""
    masks: MaskHeadConfig | None = None
    """The mask head, which predicts a mask for each object. None, the default: boxes only."""

    @property
    def least_arrays(self) -> int:
        """One for each layer of the encoder and the decoder, and for each block of a `ResNetConfig`."""
        blocks = sum(self.backbone.blocks) if isinstance(self.backbone, ResNetConfig) else 0
        return self.encoder_layers + self.decoder_layers + blocks

    @property
    def num_adapters(self) -> int:
        """Finer levels of the backbone that a mask head reads."""
        return min(MOST_ADAPTERS, len(self.backbone.strides) - 1)

    @property
    def mask_stride(self) -> int | None:
        """The stride of the finest level that the mask head reads: 4 for a ResNet-50."""
        return None if self.masks is None else self.backbone.strides[-1 - self.num_adapters]

    @property
    def mask_block(self) -> int:
        """``masks.block_size``."""
        return 1 if self.masks is None else self.masks.block_size

    def faults(self, path: str) -> Iterator[str]:
        """A sentence for each contradiction between fields."""
        yield from super().faults(path)
        if self.hidden_dim % self.num_heads:
            yield (
                f"{path}num_heads={self.num_heads} must divide {path}hidden_dim={self.hidden_dim}. The paper has 8 "
                "heads of 32 channels."
            )
        if self.hidden_dim % 4:
            yield f"{path}hidden_dim={self.hidden_dim} must be a multiple of 4 for the position embedding."
        yield from self._mask_faults(path)

    def _mask_faults(self, path: str) -> Iterator[str]:
        if self.masks is None:
            return
        divisor = 2 ** (self.num_adapters + 1)
        if self.hidden_dim % divisor:
            yield (
                f"{path}hidden_dim={self.hidden_dim} must be a multiple of {divisor} with {path}masks, because each "
                "step of the mask head halves the channels."
            )
        strides = self.backbone.strides[-1 - self.num_adapters :]
        if any(coarse not in (fine, 2 * fine) for fine, coarse in itertools.pairwise(strides)):
            yield (
                f"{path}backbone has the strides {strides}: with {path}masks, each level must have the stride of the "
                "level before it, or twice that."
            )


@dataclass(kw_only=True)
class DETRConfig(TransformerConfig):
    """DETR (section 3.2 and appendix A)."""

    least_images = 10_000
    """With fewer the authors recommend fine-tuning (facebookresearch/detr, issues 9 and 125)."""

    position_embedding: PositionEmbedding = PositionEmbedding.SINE
    """Position embedding of the feature map: "sine" (fixed, and the paper's) or "learned" (a row and a column for each
    of 50 cells)."""

    @property
    def largest_bucket(self) -> int | None:
        """Learned positions reach over a fixed number of cells."""
        return LEARNED_CELLS * self.stride if self.position_embedding == "learned" else None

    def build(self, *, rngs: "nnx.Rngs") -> "DetectorModule":
        """Build the `detr_jax.models.DETR`."""
        from detr_jax.models.detr import DETR

        return DETR(self, rngs=rngs)


ModelConfig = DETRConfig
"""The name of `DETRConfig` in earlier versions."""
