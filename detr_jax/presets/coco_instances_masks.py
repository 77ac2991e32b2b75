"""Instance segmentation: a mask head on a frozen detector, on COCO or on your own polygons.

Command::

    detr-jax train --config coco_instances_masks --config.data.root=FOLDER --config.training.init_from=CHECKPOINT

CHECKPOINT is a DETR that was trained on the same classes: a workdir of this package, such as that of the preset coco or
finetune, or a released file such as detr-r50-e632da11.pth. FOLDER holds masks: COCO's instances JSON with polygons or
run lengths, YOLO's polygons, or labelme's files.

The authors advise this order, boxes first, for instance masks too (facebookresearch/detr, issue 97).
"""

from detr_jax.config import (
    MASK_PARAMETERS,
    CocoBox,
    CocoMask,
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    MaskHeadConfig,
    ModelConfig,
    OptimizerConfig,
    Schedule,
    TrainingConfig,
    mask_terms,
)


def get_config() -> Config:
    """Batches of 8 images, 25 epochs. The model has the architecture of the checkpoint, and a mask head."""
    return Config(
        model=ModelConfig(num_classes=0, num_queries=0, masks=MaskHeadConfig()),
        data=DataConfig(masks=True),
        loss=LossConfig(terms=mask_terms(), auxiliary=False),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, schedule=Schedule.STEP, drop_epoch=15, frozen=(), trained=MASK_PARAMETERS
        ),
        training=TrainingConfig(follow_checkpoint=True, batch_size=8, epochs=25),
        evaluation=EvaluationConfig(
            every_epochs=1, batch_size=8, metrics={"bbox": CocoBox(), "segm": CocoMask()}, best="segm_AP"
        ),
    )
