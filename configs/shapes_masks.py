"""Circles, squares and triangles, drawn on the fly: the preset `detr_jax.presets.shapes`, to be changed here.

Command::

    python train.py --config configs/shapes.py

``--config shapes`` trains the preset itself. Its fields, their reasons and the expected results are in
detr_jax/presets/shapes.py.
"""

from detr_jax.config import Config
from detr_jax.presets import shapes_masks


def get_config() -> Config:
    """The preset. Set fields of it before it is returned, such as ``config.training.batch_size = 16``."""
    config = shapes_masks.get_config()
    return config
