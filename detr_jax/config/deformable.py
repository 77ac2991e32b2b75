"""The configuration of Deformable DETR (Zhu et al., 2021), and the base class of the detectors that build on it.

Defaults are those of the multi-scale R50 on COCO.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from detr_jax.config.fields import ranged
from detr_jax.config.model import Classification, DetectorConfig, TransformerConfig

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx

    from detr_jax.models.detector import DetectorModule


INITIAL_CLASS_LOGIT = -math.log(99.0)
"""The logit of a probability of 0.01, which every class has at first: most queries find nothing (the original's)."""


@dataclass(kw_only=True)
class DeformableTransformerConfig(TransformerConfig):
    """The base class of detectors that attend to a few points of several feature maps (section 4.1)."""

    run_fields = ("max_detections_per_image", *TransformerConfig.run_fields)
    least_images = 100

    num_queries: int = ranged(300, least=0)
    """More than the objects that an image can have. 0 when a training starts: those of the checkpoint that it follows,
    or else a number that suits the data; the checkpoint holds the number."""
    classification: Classification = Classification.SIGMOID
    """What the outputs of the class head mean: "sigmoid" (an own probability for each class, the paper's; needs a loss
    such as `SigmoidFocal`) or "softmax" (over the classes and "no object")."""
    feedforward_dim: int = 1024
    """Hidden channels of the feed-forward networks (the paper's)."""
    backbone_levels: int = 3
    """Levels of the backbone that the transformer reads, the coarsest ones (the paper's 3: C3 to C5)."""
    extra_levels: int = ranged(1, least=0, most=8)
    """Levels beyond the backbone's, each with half the resolution of the one before (the paper's 1). Each doubles the
    number that the sides of buckets are multiples of."""
    num_points: int = 4
    """Points that a head samples in each level (the paper's)."""
    position_temperature: float = ranged(10_000.0, least=1)
    """Base of the frequencies of the position embedding of the image's cells (the paper's)."""
    position_offset: float = ranged(-0.5, least=-1, most=0)
    """Place of a cell in the position embedding, added to its number from 1 on: -0.5 is the cell's centre (the
    original's)."""
    inverse_sigmoid_eps: float = ranged(1e-5, least=1e-7, below=0.5)
    """Least distance of a reference from 0 and from 1 when a layer corrects it (the original's)."""
    max_detections_per_image: int = 100
    """Detections per image, before any threshold: the most probable pairs of query and class (the paper's)."""

    @property
    def num_levels(self) -> int:
        """Feature maps that the transformer reads."""
        return self.backbone_levels + self.extra_levels

    @property
    def level_strides(self) -> tuple[int, ...]:
        """Pixels of the image per cell of each feature map, from fine to coarse."""
        extra = tuple(self.backbone.stride * 2 ** (level + 1) for level in range(self.extra_levels))
        return (*self.backbone.strides[-self.backbone_levels :], *extra)

    @property
    def stride(self) -> int:
        """The number of pixels that the sides of every bucket are multiples of."""
        return self.level_strides[-1]

    @property
    def max_detections(self) -> int:
        """The number of detections per image, before any threshold."""
        return min(self.max_detections_per_image, self.num_queries * max(self.num_classes, 1))

    def with_room_for(self, objects: int) -> Self:
        """The configuration with ``max_detections_per_image`` raised to the objects of the fullest image."""
        return dataclasses.replace(self, max_detections_per_image=max(objects, self.max_detections_per_image))

    def faults(self, path: str) -> Iterator[str]:
        """A sentence for each contradiction between fields."""
        yield from super().faults(path)
        levels = len(self.backbone.strides)
        if self.backbone_levels > levels:
            yield f"{path}backbone_levels={self.backbone_levels} must be at most {levels}, as the backbone has no more."
        if self.pre_norm:
            yield f"{path}pre_norm=True is for DETR only: Deformable DETR has its layer norms after each sublayer."


@dataclass(kw_only=True)
class DeformableDETRConfig(DeformableTransformerConfig):
    """Deformable DETR (section 4 and appendix A): attention to a few points of several feature maps."""

    # another number of decoder layers would give the encoder's heads, the last ones, to a decoder layer
    free_fields = ("encoder_layers", "dropout", "masks", "max_detections_per_image", *DetectorConfig.free_fields)
    resizing_fields: ClassVar[Mapping[str, str]] = {
        "num_classes": r"class_head/.*",
        "classification": r"class_head/.*",
        "num_queries": "queries/(position|content)",
    }

    refine_boxes: bool = False
    """Iterative box refinement: every decoder layer corrects the boxes of the layer before, with heads of its own."""
    two_stage: bool = False
    """The encoder proposes the boxes that the decoder starts from, instead of learned queries. Needs `refine_boxes`."""

    def kept_part(self, path: str, given: "np.ndarray", shape: tuple[int, ...]) -> "np.ndarray | None":
        """With two stages, the first class of the encoder's head, which means "an object" and chooses the proposals.

        The head's other classes are only trained to be improbable, so they start with a probability of 0.01.
        """
        if not self.two_stage or not path.startswith(f"class_head/{self.decoder_layers}/"):
            return None
        import numpy as np

        value = np.full(shape, INITIAL_CLASS_LOGIT if path.endswith("bias") else 0.0, given.dtype)
        value[..., 0] = given[..., 0]
        return value

    @property
    def default_slow(self) -> tuple[str, ...]:
        """The projections to offsets and reference points (the original's)."""
        return ("sampling_offsets",) if self.two_stage else ("sampling_offsets", "queries/reference")

    def build(self, *, rngs: "nnx.Rngs") -> "DetectorModule":
        """Build the `detr_jax.models.DeformableDETR`."""
        from detr_jax.models.deformable_detr import DeformableDETR

        return DeformableDETR(self, rngs=rngs)

    def faults(self, path: str) -> Iterator[str]:
        """A sentence for each contradiction between fields."""
        yield from super().faults(path)
        if self.masks is not None and self.num_levels > 1:
            yield (
                f"{path}masks need a detector with one feature map, and this one has {self.num_levels}: set "
                f"{path}backbone_levels=1 and {path}extra_levels=0, or use a DETR."
            )
        if self.two_stage and not self.refine_boxes:
            yield f"{path}two_stage=True needs {path}refine_boxes=True, because the decoder refines the proposals."
        if self.two_stage and self.classification != "sigmoid":
            yield f"{path}two_stage=True needs {path}classification='sigmoid': proposals are chosen by a probability."
