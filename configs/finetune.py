"""Fine-tuning of a trained detector on one's own images.

Command::

    python train.py --config configs/finetune.py --config.training.init_from=CHECKPOINT --config.data.root=FOLDER

CHECKPOINT is a workdir or checkpoint of this package, or one of facebookresearch/detr (detr-r50-e632da11.pth), Hugging
Face or mmdetection; the model is built as it says (DC5, which tensors do not show, needs
``--config.model.backbone.dilation=True``). FOLDER is a data set of COCO's, YOLO's or Pascal VOC's form, which is
recognised. The number of classes comes from the data. If it differs from the checkpoint's, the class head is
initialised again.

Why these values: the authors advise to fine-tune below about 10,000 images, and users of the original reached the best
results on small sets by keeping everything but the class head, the 100 queries included (facebookresearch/detr, issues
9 and 125); Hugging Face's guide to fine-tuning DETR takes a learning rate of 5e-5, half of the paper's. The schedule
falls to zero, so there is no epoch of a drop to choose.
"""

from detr_jax.config import Config, DataConfig, EvaluationConfig, ModelConfig, OptimizerConfig, Schedule, TrainingConfig


def get_config() -> Config:
    """At most 50 epochs of 8 images a step, ended when 10 validations have brought no better AP."""
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
