"""DINO on circles, squares and triangles, drawn on the fly: the data of the preset `shapes`.

Command::

    detr-jax train --config dino_shapes

A step takes 1.2 times as long as one of `deformable_shapes` on 2 CPU cores, so there are 2200 steps instead of 2700.
The result of a whole run was not measured yet.
"""

from detr_jax.config import Config, DINOConfig, LossConfig, dino_terms, focal_costs
from detr_jax.presets import deformable_shapes


def get_config() -> Config:
    """The backbone, data and transformer of `deformable_shapes`, with 40 denoising queries."""
    config = deformable_shapes.get_config()
    config.model = DINOConfig(
        backbone=config.model.backbone,
        num_classes=config.model.num_classes,
        num_queries=20,
        hidden_dim=64,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=2,
        feedforward_dim=128,
        backbone_levels=2,
        extra_levels=0,
        max_detections_per_image=100,
        denoising_queries=40,
    )
    config.loss = LossConfig(terms=dino_terms(), costs=focal_costs())
    config.training.steps = 2200
    return config
