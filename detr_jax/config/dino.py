"""The configuration of DINO (Zhang et al., 2022, arXiv:2203.03605). Defaults are those of the 4-scale R50 on COCO."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from detr_jax.config.deformable import DeformableTransformerConfig
from detr_jax.config.fields import ranged

if TYPE_CHECKING:
    from flax import nnx

    from detr_jax.models.detector import DetectorModule


@dataclass(kw_only=True)
class DINOConfig(DeformableTransformerConfig):
    """DINO (section 3): queries that start from the encoder's proposals, and contrastive denoising in training."""

    run_fields = (
        "denoising_queries",
        "denoising_label_noise",
        "denoising_box_noise",
        *DeformableTransformerConfig.run_fields,
    )
    free_fields = ("encoder_layers", *run_fields, "mask_padding")
    resizing_fields: ClassVar[Mapping[str, str]] = {
        "num_classes": r"class_head/.*|label_embedding",
        "num_queries": "content",
    }

    num_queries: int = ranged(900, least=0)
    """More than the objects that an image can have. 0 when a training starts: those of the checkpoint that it follows,
    or else a number that suits the data; the checkpoint holds the number."""
    feedforward_dim: int = 2048
    """Hidden channels of the feed-forward networks (the original's)."""
    dropout: float = ranged(0.0, below=1)
    """Probability of dropout in the transformer during training (the original has none)."""
    position_temperature: float = ranged(20.0, least=1)
    """Base of the frequencies of the position embedding of the image's cells (the original's)."""
    position_offset: float = ranged(0.0, least=-1, most=0)
    """Place of a cell in the position embedding, added to its number from 1 on (the original's)."""
    inverse_sigmoid_eps: float = ranged(1e-3, least=1e-7, below=0.5)
    """Least distance of a reference from 0 and from 1 when a layer corrects it (the original's)."""
    max_detections_per_image: int = 300
    """Detections per image, before any threshold: the most probable pairs of query and class (the original's)."""
    share_heads: bool = True
    """All decoder layers have the same heads (the original's released models). False: each layer has its own, as in
    mmdetection and detrex."""
    denoising_queries: int = ranged(200, least=0)
    """Denoising queries in training, half of them positive (the original's 200). They are filled with as many groups as
    have room, each with all objects of an image; objects beyond half of this number get none. 0: no denoising."""
    denoising_label_noise: float = ranged(0.5, most=1)
    """Twice the share of denoising queries whose class is replaced by a random one (the original's)."""
    denoising_box_noise: float = 1.0
    """Largest shift of a corner of a positive denoising query, in half sides of its box; negative ones are shifted by
    once to twice as much (the original's)."""

    def build(self, *, rngs: "nnx.Rngs") -> "DetectorModule":
        """Build the `detr_jax.models.DINO`."""
        from detr_jax.models.dino import DINO

        return DINO(self, rngs=rngs)

    def faults(self, path: str) -> Iterator[str]:
        """A sentence for each contradiction between fields."""
        yield from super().faults(path)
        if self.masks is not None:
            yield f"{path}masks need a DETR, or a Deformable DETR with one feature map: DINO predicts boxes only."
        if self.classification != "sigmoid":
            yield f"{path}classification must be 'sigmoid': DINO chooses its proposals by a probability."
        if self.hidden_dim % 8:
            yield f"{path}hidden_dim={self.hidden_dim} must be a multiple of 8, for the embedding of four numbers."
