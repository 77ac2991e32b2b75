"""Masks and panoptic segments of drawn shapes on drawn backgrounds: nothing to download, no accelerator needed.

Command::

    detr-jax train --config shapes_masks
"""

import dataclasses

from detr_jax.config import (
    CocoBox,
    CocoMask,
    Config,
    DETRConfig,
    EvaluationConfig,
    LossConfig,
    MaskHeadConfig,
    PanopticQuality,
    ShapesConfig,
    mask_terms,
)
from detr_jax.presets import shapes


def get_config() -> Config:
    """The preset shapes with a mask head that is trained from the first step on."""
    config = shapes.get_config()
    assert isinstance(config.model, DETRConfig)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_classes=6, num_queries=10, masks=MaskHeadConfig()),
        data=dataclasses.replace(
            config.data,
            masks=True,
            sources={"shapes": ShapesConfig(backgrounds=("plain", "stripes", "checks"))},
        ),
        loss=LossConfig(terms=mask_terms()),
        training=dataclasses.replace(config.training, batch_size=16, steps=5700),
        evaluation=EvaluationConfig(
            every_epochs=20,
            batch_size=64,
            metrics={"bbox": CocoBox(), "segm": CocoMask(), "panoptic": PanopticQuality(threshold=0.5)},
        ),
    )
