"""DINO R50 with 4 feature maps on COCO, the paper's recipe of 12 epochs.

Command::

    detr-jax train --config dino_coco --config.data.root=FOLDER

FOLDER holds train2017/, val2017/ and annotations/instances_{train,val}2017.json.

The authors report 49.0 AP after 12 epochs, and 50.4 AP after 24 epochs with ``--config.training.epochs=24
--config.optimizer.drop_epoch=20``. These figures were not measured here. The runs start from a ResNet-50 that was
pretrained on ImageNet. The authors report lower AP for other batch sizes.
"""

from detr_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    OptimizerConfig,
    Schedule,
    TrainingConfig,
    dino_terms,
    focal_costs,
)
from detr_jax.models import dino_4scale_resnet50


def get_config() -> Config:
    """Batches of 16 images, 12 epochs, learning rates divided by 10 from epoch 11 on."""
    return Config(
        model=dino_4scale_resnet50(),
        data=DataConfig(),
        loss=LossConfig(terms=dino_terms(), costs=focal_costs()),
        optimizer=OptimizerConfig(
            learning_rate=1e-4,
            backbone_learning_rate=1e-5,
            schedule=Schedule.STEP,
            drop_epoch=11,
        ),
        training=TrainingConfig(batch_size=16, epochs=12),
        evaluation=EvaluationConfig(every_epochs=1, batch_size=8),
    )
