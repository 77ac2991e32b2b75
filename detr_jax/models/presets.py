"""Configurations of the published models (DETR, tables 1 and 5; Deformable DETR, tables 1 and 3; their model zoos).

DINO: table 1 of Zhang et al., 2022.
"""

from typing import Any

from detr_jax.config import (
    NUM_PANOPTIC_LABELS,
    BackboneConfig,
    DeformableDETRConfig,
    DINOConfig,
    MaskHeadConfig,
    ModelConfig,
)

_RESNETS: dict[int, tuple[str, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
}


def resnet_config(depth: int, **fields: Any) -> BackboneConfig:
    """The configuration of ResNet-18, 34, 50 or 101. ``fields`` override fields of `BackboneConfig`."""
    if depth not in _RESNETS:
        raise ValueError(f"There is no preset of a ResNet-{depth}: the depth must be one of {list(_RESNETS)}.")
    block, blocks = _RESNETS[depth]
    return BackboneConfig(**{"block": block, "blocks": blocks, **fields})


def detr_resnet50(**fields: Any) -> ModelConfig:
    """DETR R50: 42.0 AP on COCO at 500 epochs, 41M parameters. ``fields`` override fields of `ModelConfig`."""
    return ModelConfig(**{"backbone": resnet_config(50), **fields})


def detr_resnet50_dc5(**fields: Any) -> ModelConfig:
    """DETR R50-DC5 (dilated last stage, stride 16): 43.3 AP."""
    return ModelConfig(**{"backbone": resnet_config(50, dilation=True), **fields})


def detr_resnet101(**fields: Any) -> ModelConfig:
    """DETR R101: 43.5 AP, 60M parameters."""
    return ModelConfig(**{"backbone": resnet_config(101), **fields})


def detr_resnet101_dc5(**fields: Any) -> ModelConfig:
    """DETR R101-DC5: 44.9 AP."""
    return ModelConfig(**{"backbone": resnet_config(101, dilation=True), **fields})


def detr_resnet50_panoptic(**fields: Any) -> ModelConfig:
    """DETR R50 with a mask head and COCO's panoptic classes: PQ 43.4, 43M parameters."""
    return detr_resnet50(**{**_panoptic(), **fields})


def detr_resnet50_dc5_panoptic(**fields: Any) -> ModelConfig:
    """DETR R50-DC5 with a mask head and COCO's panoptic classes: PQ 44.6."""
    return detr_resnet50_dc5(**{**_panoptic(), **fields})


def detr_resnet101_panoptic(**fields: Any) -> ModelConfig:
    """DETR R101 with a mask head and COCO's panoptic classes: PQ 45.1."""
    return detr_resnet101(**{**_panoptic(), **fields})


def _panoptic() -> dict[str, Any]:
    return {"num_classes": NUM_PANOPTIC_LABELS, "masks": MaskHeadConfig()}


def deformable_detr_resnet50(**fields: Any) -> DeformableDETRConfig:
    """Deformable DETR R50, multi-scale: 44.5 AP on COCO at 50 epochs, 40M parameters."""
    return DeformableDETRConfig(**{"backbone": resnet_config(50), **fields})


def deformable_detr_resnet50_single_scale(**fields: Any) -> DeformableDETRConfig:
    """Deformable DETR R50 with only the last level of the backbone: 39.4 AP."""
    return deformable_detr_resnet50(**{"backbone_levels": 1, "extra_levels": 0, **fields})


def deformable_detr_resnet50_single_scale_dc5(**fields: Any) -> DeformableDETRConfig:
    """Deformable DETR R50-DC5 with only the last level of the backbone, at stride 16: 41.5 AP."""
    return deformable_detr_resnet50_single_scale(**{"backbone": resnet_config(50, dilation=True), **fields})


def deformable_detr_resnet50_refine(**fields: Any) -> DeformableDETRConfig:
    """Deformable DETR R50 with iterative bounding box refinement: 46.2 AP."""
    return deformable_detr_resnet50(**{"refine_boxes": True, **fields})


def deformable_detr_resnet50_two_stage(**fields: Any) -> DeformableDETRConfig:
    """Deformable DETR R50 with refinement and two stages: 46.9 AP."""
    return deformable_detr_resnet50_refine(**{"two_stage": True, **fields})


def dino_4scale_resnet50(**fields: Any) -> DINOConfig:
    """DINO R50 with 4 feature maps of strides 8 to 64: 49.0 AP on COCO at 12 epochs, 47M parameters."""
    return DINOConfig(**{"backbone": resnet_config(50), **fields})


def dino_5scale_resnet50(**fields: Any) -> DINOConfig:
    """DINO R50 with 5 feature maps of strides 4 to 64: 49.4 AP on COCO at 12 epochs."""
    return dino_4scale_resnet50(**{"backbone_levels": 4, **fields})
