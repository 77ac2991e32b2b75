"""A small detector from scratch on your own images: a first look without pretrained weights.

Command::

    detr-jax train --config small --config.data.root=FOLDER

FOLDER is a data set in the format of COCO, YOLO, Pascal VOC or labelme, which is recognised. If it has no validation
split, ``--config.data.val_share=0.2`` holds images out. The number of classes comes from the data.

DETR needs many images to learn from scratch. To get a detector for real use, fine-tune a trained one with
``--config finetune``.
"""

from detr_jax.config import (
    BackboneConfig,
    Block,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    Norm,
    OptimizerConfig,
    Schedule,
    TrainingConfig,
)


def get_config() -> Config:
    """A narrow ResNet with group norm, 3 encoder and 3 decoder layers, images with a short side of about 256 pixels."""
    return Config(
        model=ModelConfig(
            backbone=BackboneConfig(block=Block.BASIC, blocks=(1, 1, 1, 1), width=32, norm=Norm.GROUP),
            num_classes=0,
            num_queries=25,
            hidden_dim=128,
            encoder_layers=3,
            decoder_layers=3,
            feedforward_dim=512,
        ),
        data=DataConfig(
            train_short_sides=(224, 240, 256, 272, 288),
            crop_short_sides=(),
            val_short_side=256,
            max_long_side=448,
        ),
        optimizer=OptimizerConfig(
            learning_rate=4e-4, backbone_learning_rate=4e-4, schedule=Schedule.COSINE, warmup_steps=100, frozen=()
        ),
        training=TrainingConfig(batch_size=8, epochs=100, ema_decay=0.998),
        evaluation=EvaluationConfig(every_epochs=10, batch_size=8),
    )
