"""A configuration that trains in seconds."""

from detr_jax.config import (
    BackboneConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ShapesConfig,
    TrainingConfig,
)


def tiny_config() -> Config:
    """Shapes of 24 to 32 pixels, a few channels, one or two layers, with dropout.

    Matching on the device, as the compiled program can then be kept, so that the first test alone compiles it.
    """
    return Config(
        model=ModelConfig(
            backbone=BackboneConfig(block="basic", blocks=(1, 1), width=8, stem="small", norm="group"),
            num_classes=3,
            num_queries=5,
            hidden_dim=16,
            num_heads=2,
            encoder_layers=1,
            decoder_layers=2,
            feedforward_dim=32,
            dropout=0.1,
        ),
        data=DataConfig(
            dataset="shapes",
            sources={"shapes": ShapesConfig(train_images=48, val_images=10, min_size=24, max_size=32)},
            train_short_sides=(),
            crop_short_sides=(),
            val_short_side=0,
            train_buckets=((32, 32),),
            val_buckets=((32, 32),),
        ),
        loss=LossConfig(matcher="device"),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, backbone_learning_rate=1e-4, schedule="cosine", warmup_steps=2, frozen=()
        ),
        training=TrainingConfig(batch_size=8, steps=12, ema_decay=0.9, log_every=4, checkpoint_every=5),
        evaluation=EvaluationConfig(every_epochs=1, batch_size=4, pictures=4, snapshots=3),
    )
