"""Fine-tuning of a trained detector on your own images: the preset `detr_jax.presets.finetune`, to be changed here.

Command::

    python train.py --config configs/finetune.py --config.training.init_from=CHECKPOINT --config.data.root=FOLDER

``--config finetune`` trains the preset itself. Its fields, their reasons and the expected results are in
detr_jax/presets/finetune.py.
"""

from detr_jax.config import Config
from detr_jax.presets import finetune


def get_config() -> Config:
    """The preset. Set fields of it before it is returned, such as ``config.training.batch_size = 16``."""
    config = finetune.get_config()
    return config
