"""Panoptic segmentation on COCO, first phase: boxes of things and stuff, the paper's recipe.

Command::

    detr-jax train --config coco_panoptic_boxes --config.data.root=FOLDER --workdir boxes

FOLDER holds train2017/, val2017/, annotations/panoptic_{train,val}2017.json and the PNG files in
annotations/panoptic_{train,val}2017/. The second phase, ``coco_panoptic_masks``, trains a mask head on the result.

The paper reports 300 epochs for this phase, at the cost of DETR's training. This was not measured here.
"""

import dataclasses

from detr_jax.config import NUM_PANOPTIC_LABELS, Config
from detr_jax.presets import coco


def get_config() -> Config:
    """The preset coco with the panoptic classes."""
    config = coco.get_config()
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, num_classes=NUM_PANOPTIC_LABELS),
        data=dataclasses.replace(config.data, dataset="coco_panoptic"),
    )
