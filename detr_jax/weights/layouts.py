"""`LAYOUTS`: the kinds of checkpoints that this package reads. A new framework or family is a new entry."""

from detr_jax.weights.deformable import DEFORMABLE_DETR, DEFORMABLE_DETR_REFINED
from detr_jax.weights.deformable_huggingface import DEFORMABLE_HUGGINGFACE, DEFORMABLE_HUGGINGFACE_REFINED
from detr_jax.weights.deformable_mmdetection import DEFORMABLE_MMDETECTION, DEFORMABLE_MMDETECTION_REFINED
from detr_jax.weights.detectron2 import DETECTRON2
from detr_jax.weights.dino_mmdetection import DINO_MMDETECTION
from detr_jax.weights.facebook import FACEBOOK
from detr_jax.weights.huggingface import HUGGINGFACE
from detr_jax.weights.mmdetection import MMDETECTION
from detr_jax.weights.torchvision import TORCHVISION

LAYOUTS = (
    FACEBOOK,
    DETECTRON2,
    HUGGINGFACE,
    MMDETECTION,
    TORCHVISION,
    DEFORMABLE_DETR,
    DEFORMABLE_DETR_REFINED,
    DEFORMABLE_HUGGINGFACE,
    DEFORMABLE_HUGGINGFACE_REFINED,
    DEFORMABLE_MMDETECTION,
    DEFORMABLE_MMDETECTION_REFINED,
    DINO_MMDETECTION,
)
"""The layouts that `read_pretrained` recognises by default."""
