"""Masks and panoptic segments of drawn shapes: the preset `detr_jax.presets.shapes_masks`, to be changed here.

Command::

    python train.py --config configs/shapes_masks.py

``--config shapes_masks`` trains the preset itself. Its fields, their reasons and the expected results are in
detr_jax/presets/shapes_masks.py.
"""

from detr_jax.config import Config
from detr_jax.presets import shapes_masks


def get_config() -> Config:
    """The preset. Set fields of it before it is returned, such as ``config.training.batch_size = 16``."""
    config = shapes_masks.get_config()
    return config
