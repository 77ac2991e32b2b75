"""Deformable DETR R50 on COCO, the paper's recipe.

Command::

    detr-jax train --config deformable_coco --config.data.root=FOLDER

FOLDER holds train2017/, val2017/ and annotations/instances_{train,val}2017.json.

The authors report 44.5 AP after 50 epochs, 46.2 AP with ``--config.model.refine_boxes=True``, and 46.9 AP with
``--config.model.two_stage=True`` as well. These figures were not measured here. The runs start from a ResNet-50 that
was pretrained on ImageNet.
"""

from detr_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    Schedule,
    TrainingConfig,
    focal_costs,
    focal_terms,
)
from detr_jax.models import deformable_detr_resnet50


def get_config() -> Config:
    """Batches of 32 images, 50 epochs, learning rates divided by 10 from epoch 40 on."""
    return Config(
        model=deformable_detr_resnet50(),
        data=DataConfig(),
        loss=LossConfig(terms=focal_terms(), costs=focal_costs()),
        optimizer=OptimizerConfig(
            learning_rate=2e-4,
            backbone_learning_rate=2e-5,
            schedule=Schedule.STEP,
            drop_epoch=40,
        ),
        training=TrainingConfig(batch_size=32, epochs=50),
        evaluation=EvaluationConfig(every_epochs=1, batch_size=8),
    )
