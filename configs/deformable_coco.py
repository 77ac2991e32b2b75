"""Deformable DETR R50 on COCO, the paper's recipe: the preset `detr_jax.presets.deformable_coco`, to be changed here.

Command::

    python train.py --config configs/deformable_coco.py --config.data.root=FOLDER

``--config deformable_coco`` trains the preset itself. Its fields, their reasons and the expected results are in
detr_jax/presets/deformable_coco.py.
"""

from detr_jax.config import Config
from detr_jax.presets import deformable_coco


def get_config() -> Config:
    """The preset. Set fields of it before it is returned, such as ``config.training.batch_size = 16``."""
    config = deformable_coco.get_config()
    return config
