"""Fine-tuning of a trained detector on your own images.

Command::

    detr-jax train --config finetune --config.training.init_from=CHECKPOINT --config.data.root=FOLDER

CHECKPOINT is a workdir or checkpoint of this package, or a checkpoint of facebookresearch/detr
(detr-r50-e632da11.pth), Hugging Face or mmdetection. The model gets the architecture of the checkpoint. Tensors do not
show DC5, which needs ``--config.model.backbone.dilation=True``. FOLDER is a data set in the format of COCO, YOLO,
Pascal VOC or labelme, which is recognised. The number of classes comes from the data. If it differs from the
checkpoint's number, the class head is initialised again.

The authors advise to fine-tune below about 10,000 images. Users of the original reached the best results on small sets
when they kept everything but the class head, the 100 queries included (facebookresearch/detr, issues 9 and 125).
Hugging Face's guide to fine-tuning DETR uses a learning rate of 5e-5, half of the paper's. The schedule falls to zero,
so no epoch of a drop has to be chosen.
"""

from detr_jax.config import Config, DataConfig, EvaluationConfig, ModelConfig, OptimizerConfig, Schedule, TrainingConfig


def get_config() -> Config:
    """Batches of 8 images, at most 50 epochs. The run stops after 10 validations without a better AP."""
    return Config(
        model=ModelConfig(num_classes=0, num_queries=0),
        data=DataConfig(),
        optimizer=OptimizerConfig(
            learning_rate=5e-5,
            backbone_learning_rate=5e-6,
            schedule=Schedule.COSINE,
            warmup_steps=50,
            weight_decay=1e-4,
        ),
        training=TrainingConfig(
            follow_checkpoint=True, batch_size=8, epochs=50, early_stop=10, checkpoint_every=1000, keep_checkpoints=1
        ),
        evaluation=EvaluationConfig(every_epochs=1, batch_size=8),
    )
