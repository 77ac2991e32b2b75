"""A detector from scratch for a small set of images: hundreds of images, minutes, no pretrained weights.

Command::

    detr-jax train --config small --config.data.root=FOLDER

FOLDER is a data set in the format of COCO, YOLO, Pascal VOC or labelme, which is recognised. If it has no validation
split, ``--config.data.val_share=0.2`` holds images out. Classes, image sizes and the number of queries come from the
data.

Measured with jax 0.10.2 on 2 cores of an AMD EPYC, on 160 photos of raccoons for training and 40 for validation: AP
0.273 and AP50 0.574 after 29 minutes (AP50 0.477 after 18 minutes, 0.553 after 27). DETR with the same backbone, images
and widths had AP50 0.464 after 25 epochs, but fell to 0.10 until epoch 125, with the same box in every photo.

To get a detector for real use, fine-tune a trained one with ``--config finetune`` instead.
"""

from detr_jax.config import (
    BackboneConfig,
    Block,
    ColorJitter,
    Config,
    DataConfig,
    DeformableDETRConfig,
    DetrAugmentation,
    EvaluationConfig,
    LossConfig,
    Norm,
    OptimizerConfig,
    Schedule,
    TrainingConfig,
    focal_costs,
    focal_terms,
)


def get_config() -> Config:
    """A two-stage Deformable DETR with a narrow ResNet with group norm, on feature maps of strides 16 and 32."""
    return Config(
        model=DeformableDETRConfig(
            backbone=BackboneConfig(block=Block.BASIC, blocks=(1, 1, 1, 1), width=32, norm=Norm.GROUP),
            num_classes=0,
            num_queries=0,
            hidden_dim=128,
            num_heads=4,
            encoder_layers=1,
            decoder_layers=3,
            feedforward_dim=256,
            dropout=0.0,
            backbone_levels=2,
            extra_levels=0,
            refine_boxes=True,
            two_stage=True,
        ),
        data=DataConfig(
            sizes_from_data=True,
            augmentation=DetrAugmentation(
                photometric=ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.05)
            ),
        ),
        loss=LossConfig(terms=focal_terms(), costs=focal_costs()),
        optimizer=OptimizerConfig(
            learning_rate=7e-4, backbone_learning_rate=7e-4, schedule=Schedule.COSINE, warmup_steps=100, frozen=()
        ),
        training=TrainingConfig(batch_size=8, epochs=250, ema_decay=0.998),
        evaluation=EvaluationConfig(every_epochs=25, batch_size=8),
    )
