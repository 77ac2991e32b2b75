"""DETR R50 on COCO, the paper's recipe.

Command::

    detr-jax train --config coco --config.data.root=FOLDER

FOLDER holds train2017/, val2017/ and annotations/instances_{train,val}2017.json.

The paper and its repository report 40.8 AP after 300 epochs, 39.5 AP after 150, and 42.0 AP after 500 with the drop at
400. An epoch takes 28 minutes on 8 V100 GPUs. These figures were not measured here. The runs start from a ResNet-50
that was pretrained on ImageNet.
"""

from detr_jax.config import Config, DataConfig, EvaluationConfig, OptimizerConfig, Schedule, TrainingConfig
from detr_jax.models import detr_resnet50


def get_config() -> Config:
    """Batches of 64 images, 300 epochs, learning rates divided by 10 from epoch 200 on."""
    return Config(
        model=detr_resnet50(),
        data=DataConfig(),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, backbone_learning_rate=1e-5, schedule=Schedule.STEP, drop_epoch=200
        ),
        training=TrainingConfig(batch_size=64, epochs=300),
        evaluation=EvaluationConfig(every_epochs=1, batch_size=8),
    )
