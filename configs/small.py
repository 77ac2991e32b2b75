"""A small detector from scratch on one's own images: a first look without pretrained weights.

Command::

    python train.py --config configs/small.py --config.data.root=FOLDER

FOLDER is a data set of COCO's, YOLO's, Pascal VOC's or labelme's form, which is recognised;
``--config.data.val_share=0.2`` holds images out if it has no validation split. The number of classes comes from the
data.

DETR needs many images to learn from scratch. For a detector to be used, fine-tune a trained one with
configs/finetune.py.
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
    """A narrow ResNet with group norm and three layers each, on images of a short side of about 256 pixels."""
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
