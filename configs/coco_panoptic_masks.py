"""Panoptic DETR R50 on COCO, second phase: the preset `detr_jax.presets.coco_panoptic_masks`, to be changed here.

Command::

    python train.py --config configs/coco_panoptic_masks.py --config.data.root=FOLDER \
        --config.training.init_from=boxes

``--config coco_panoptic_masks`` trains the preset itself. Its fields, their reasons and the expected results are in
detr_jax/presets/coco_panoptic_masks.py.
"""

from detr_jax.config import Config
from detr_jax.presets import coco_panoptic_masks


def get_config() -> Config:
    """The preset. Set fields of it before it is returned, such as ``config.training.batch_size = 16``."""
    config = coco_panoptic_masks.get_config()
    return config
