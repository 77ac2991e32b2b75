"""DETR R50 on COCO, the paper's recipe.

Command::

    python train.py --config configs/coco.py --config.data.root=FOLDER

where FOLDER holds train2017/, val2017/ and annotations/instances_{train,val}2017.json.

Expected, as the paper and its repository report them (not measured here): 40.8 AP after 300 epochs, 39.5 after
150, 42.0 after 500 with the drop at 400; 28 minutes an epoch on 8 V100 GPUs. Those runs start from a ResNet-50
pretrained on ImageNet.
"""

from detr_jax.config import Config, DataConfig, EvaluationConfig, OptimizerConfig, Schedule, TrainingConfig
from detr_jax.models import detr_resnet50


def get_config() -> Config:
    """Batch 64, 300 epochs, learning rates a tenth from epoch 200 on."""
    return Config(
        model=detr_resnet50(),
        data=DataConfig(),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, backbone_learning_rate=1e-5, schedule=Schedule.STEP, drop_epoch=200
        ),
        training=TrainingConfig(batch_size=64, epochs=300),
        evaluation=EvaluationConfig(every_epochs=1, batch_size=8),
    )
