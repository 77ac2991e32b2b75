"""DINO on drawn shapes: the preset `detr_jax.presets.dino_shapes`, to be changed here.

Command::

    python train.py --config configs/dino_shapes.py

``--config dino_shapes`` trains the preset itself. Its fields, their reasons and the expected results are in
detr_jax/presets/dino_shapes.py.
"""

from detr_jax.config import Config
from detr_jax.presets import dino_shapes


def get_config() -> Config:
    """The preset. Set fields of it before it is returned, such as ``config.training.batch_size = 16``."""
    config = dino_shapes.get_config()
    return config
