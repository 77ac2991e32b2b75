"""Complete configurations that can be trained by name: ``detr-jax train --config coco``.

Each module has one function ``get_config()``. In Python, ``detr_jax.presets.get_config("coco")`` returns the same
configuration as ``detr_jax.presets.coco.get_config()``.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detr_jax.config import Config

PRESETS = {
    "shapes": "Circles, squares and triangles, drawn on the fly: 9 minutes on 2 CPU cores.",
    "small": "A small detector from scratch on your own images, for a first look.",
    "finetune": "Fine-tuning of a trained detector on your own images.",
    "coco": "DETR R50 on COCO, the paper's recipe.",
    "coco_panoptic_boxes": "Panoptic DETR R50 on COCO, first phase: boxes of things and stuff.",
    "coco_panoptic_masks": "Panoptic DETR R50 on COCO, second phase: the mask head.",
    "coco_instances_masks": "A mask head for a trained DETR, on COCO or your own polygons.",
    "shapes_masks": "Masks and panoptic segments of drawn shapes: 10 minutes on 2 CPU cores.",
    "deformable_coco": "Deformable DETR R50 on COCO, the paper's recipe.",
    "deformable_shapes": "Deformable DETR on the data of shapes: 9 minutes on 2 CPU cores.",
    "dino_coco": "DINO R50 on COCO, the paper's recipe of 12 epochs.",
    "dino_shapes": "DINO on the data of shapes, for 2 CPU cores.",
}
"""What each preset is for, by name."""


def get_config(name: str) -> "Config":
    """Return a new configuration of a preset.

    Raises:
      KeyError: there is no preset of this name.
    """
    if name not in PRESETS:
        raise KeyError(f"There is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    config: Config = importlib.import_module(f"{__name__}.{name}").get_config()
    return config
