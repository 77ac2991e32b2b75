"""A mask head for a trained DETR: the preset `detr_jax.presets.coco_instances_masks`, to be changed here.

Command::

    python train.py --config configs/coco_instances_masks.py --config.data.root=FOLDER \
        --config.training.init_from=CHECKPOINT

``--config coco_instances_masks`` trains the preset itself. Its fields, their reasons and the expected results are in
detr_jax/presets/coco_instances_masks.py.
"""

from detr_jax.config import Config
from detr_jax.presets import coco_instances_masks


def get_config() -> Config:
    """The preset. Set fields of it before it is returned, such as ``config.training.batch_size = 16``."""
    config = coco_instances_masks.get_config()
    return config
