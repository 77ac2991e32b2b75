"""A small detector from scratch on your own images: the preset `detr_jax.presets.small`, to be changed here.

Command::

    python train.py --config configs/small.py --config.data.root=FOLDER

``--config small`` trains the preset itself. Its fields, their reasons and the expected results are in
detr_jax/presets/small.py.
"""

from detr_jax.config import Config
from detr_jax.presets import small


def get_config() -> Config:
    """The preset. Set fields of it before it is returned, such as ``config.training.batch_size = 16``."""
    config = small.get_config()
    return config
