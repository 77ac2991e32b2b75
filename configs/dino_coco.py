"""DINO R50 on COCO, the paper's recipe of 12 epochs: the preset `detr_jax.presets.dino_coco`, to be changed here.

Command::

    python train.py --config configs/dino_coco.py --config.data.root=FOLDER

``--config dino_coco`` trains the preset itself. Its fields, their reasons and the expected results are in
detr_jax/presets/dino_coco.py.
"""

from detr_jax.config import Config
from detr_jax.presets import dino_coco


def get_config() -> Config:
    """The preset. Set fields of it before it is returned, such as ``config.training.batch_size = 16``."""
    config = dino_coco.get_config()
    return config
