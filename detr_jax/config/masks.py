"""The configuration of the mask head."""

from dataclasses import dataclass

from detr_jax.config.fields import ranged

MOST_ADAPTERS = 3
"""Finer levels of the backbone that a mask head reads, if the backbone has so many (the original's)."""

MASK_PARAMETERS = ("mask_head",)
"""``optimizer.trained`` for the second phase of the original: the mask head is trained, and the detector is frozen."""


NUM_PANOPTIC_LABELS = 250
"""Labels of the original's panoptic models. COCO's raw ids reach 200, and the others belong to no class."""


@dataclass(kw_only=True)
class MaskHeadConfig:
    """A mask for each object (DETR, section 3.4 and appendix A.5)."""

    block_size: int = ranged(16, least=1)
    """Masks of an image that are computed at a time. Less needs less memory; the result is the same. 16, the default,
    holds the objects of most images of COCO (11 on average)."""
