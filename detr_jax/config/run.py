"""The configuration of a run: optimizer, training, evaluation, and the whole `Config`."""

from dataclasses import dataclass, field

from detr_jax.config.data import DataConfig
from detr_jax.config.loss import LossConfig
from detr_jax.config.model import ModelConfig


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule (DETR, section 4 and appendix A.4)."""

    learning_rate: float = 1e-4
    backbone_learning_rate: float = 1e-5
    """0 freezes the whole backbone."""
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.1
    """Largest global norm of the trainable parameters' gradient; 0: no clipping."""
    schedule: str = "step"
    """"step" (a tenth from drop_epoch on), "cosine" (to zero at the end) or "constant"."""
    drop_epoch: int = 200
    warmup_steps: int = 0
    """Optimiser steps over which the learning rates rise linearly from 0."""
    frozen: tuple[str, ...] = ("backbone/stem", "backbone/stages/0")
    """Parameters that are not trained, by the beginning of their path."""


@dataclass(kw_only=True)
class TrainingConfig:
    """The run: length, batch, log, checkpoints."""

    batch_size: int = 64
    """Images of an optimiser step, over all devices and accumulated parts."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after another, to save memory; the result is the whole batch's."""
    epochs: int | None = 300
    steps: int | None = None
    """Optimiser steps; takes the place of epochs where given."""
    seed: int = 0
    init_from: str = ""
    """A checkpoint to start from, of any kind that `detr_jax.weights.read_pretrained` reads; empty: start anew."""
    follow_checkpoint: bool = False
    """Build the model of `init_from` whatever ``model`` says, except for num_classes, dropout, dtype, remat, and
    num_queries where it is not 0. Of a backbone alone, the backbone and its pixel mean and deviation."""
    follow_image_sizes: bool = True
    """With `follow_checkpoint`: also take the image sizes of ``data`` (sides, crops, rounding) from the checkpoint, if
    all of them have their default values. False keeps the values of ``data``."""
    ema_decay: float = 0.0
    """Decay of the moving average of the parameters that is then evaluated; 0: none."""
    log_every: int = 50
    """Optimiser steps between two lines of the log."""
    fsdp: bool = False
    """Share parameters, their moving average and the optimiser's state out over the devices, as fully sharded data
    parallelism does, where each device holds them whole otherwise: less memory, more communication."""
    checkpoint_every: int = 1000
    """Optimiser steps between two checkpoints; there is always one at the end."""
    keep_checkpoints: int = 3
    """Of the newest; that of the best validation is kept beside them."""
    early_stop: int = 0
    """Validations in a row without a better AP after which the run ends; 0: never."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """Validation during training and at its end."""

    every_epochs: int = 1
    """Epochs between two validations; 0: at the end only."""
    batch_size: int = 8
    pictures: int = 12
    """Validation images drawn into predictions.png at the end of a run, and those of the snapshots."""
    snapshots: int = 32
    """Times of a run, denser in its beginning, at which what the model finds in those images is kept, from which
    ``detr-jax plot`` makes an animation; 0: none."""
    picture_threshold: float = 0.5
    """Lowest score of a drawn prediction."""


@dataclass(kw_only=True)
class Config:
    """Everything that a run needs to know."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
