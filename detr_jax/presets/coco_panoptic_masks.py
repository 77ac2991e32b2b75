"""Panoptic segmentation on COCO, second phase: a mask head on a frozen detector, the paper's recipe.

Command::

    detr-jax train --config coco_panoptic_masks --config.data.root=FOLDER --config.training.init_from=boxes

FOLDER is that of the first phase, ``coco_panoptic_boxes``, and ``boxes`` its workdir. A checkpoint of another framework
works as well, also a panoptic one.

The original trains this phase for 25 epochs with a drop after 15. Published: PQ 43.4 (things 48.2, stuff 36.3), box AP
38.8 and mask AP 31.1 with a ResNet-50. These figures were not measured here. As in the original, the dropout of the
frozen detector stays on; ``--config.model.dropout=0`` turns it off.
"""

import dataclasses

from detr_jax.config import (
    MASK_PARAMETERS,
    CocoBox,
    CocoMask,
    Config,
    LossConfig,
    OptimizerConfig,
    PanopticQuality,
    Schedule,
    mask_terms,
)
from detr_jax.models import detr_resnet50_panoptic
from detr_jax.presets import coco_panoptic_boxes


def get_config() -> Config:
    """Batches of 64 images, 25 epochs, only the mask head is trained, and the other losses are only logged."""
    config = coco_panoptic_boxes.get_config()
    return dataclasses.replace(
        config,
        model=detr_resnet50_panoptic(),
        data=dataclasses.replace(config.data, masks=True),
        loss=LossConfig(terms=mask_terms(), auxiliary=False),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, schedule=Schedule.STEP, drop_epoch=15, frozen=(), trained=MASK_PARAMETERS
        ),
        training=dataclasses.replace(config.training, epochs=25),
        evaluation=dataclasses.replace(
            config.evaluation,
            metrics={"bbox": CocoBox(), "segm": CocoMask(), "panoptic": PanopticQuality()},
            best="panoptic_PQ",
        ),
    )
