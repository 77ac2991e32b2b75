"""The configuration of a run: optimizer, training, evaluation, and the complete `Config`."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from detr_jax.config.data import DataConfig
from detr_jax.config.fields import Choice, ranged
from detr_jax.config.loss import LossConfig
from detr_jax.config.metrics import CocoBox, MetricConfig, logged_name
from detr_jax.config.model import DetectorConfig, DETRConfig


class Schedule(Choice):
    """How the learning rates change after the warm-up."""

    STEP = "step"
    COSINE = "cosine"
    CONSTANT = "constant"


class OnNonfinite(Choice):
    """What a training does after a loss or a gradient that is not finite."""

    STOP = "stop"
    SKIP = "skip"


class OnWriteError(Choice):
    """What a training does if a checkpoint or a line of its log cannot be written."""

    STOP = "stop"
    CONTINUE = "continue"


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule (DETR, section 4 and appendix A.4)."""

    learning_rate: float = 1e-4
    """Peak learning rate of all parameters outside the backbone. The default is the paper's."""
    backbone_learning_rate: float = 1e-5
    """Peak learning rate of the backbone. The default is the paper's, for pretrained weights. 0 freezes the whole
    backbone."""
    slow_parameters: tuple[str, ...] | None = None
    """Parameters outside the backbone that learn more slowly, by a part of their path, such as ("sampling_offsets",).
    None, the default: those that the detector names, which is none for DETR. (): none."""
    slow_factor: float = 0.1
    """Factor of the learning rate for `slow_parameters` (Deformable DETR's)."""
    weight_decay: float = 1e-4
    """AdamW's decoupled weight decay, for all trainable parameters. The default is the paper's."""
    beta1: float = ranged(0.9, below=1)
    """Decay of the mean of the gradients in AdamW. The default is Adam's usual one."""
    beta2: float = ranged(0.999, below=1)
    """Decay of the mean of the squared gradients in AdamW. The default is Adam's usual one."""
    clip_norm: float = 0.1
    """Largest global norm of the trainable parameters' gradient. The default is the paper's. 0: no clipping."""
    schedule: Schedule = Schedule.STEP
    """How the learning rates change after the warm-up. "step", the paper's and the default: a tenth from `drop_epoch`
    on. "cosine": to zero at the end. "constant": not at all."""
    drop_epoch: int = 200
    """Epoch from which the schedule "step" divides the learning rates by 10. 200 of 300 epochs are the paper's."""
    warmup_steps: int = ranged(0, least=0)
    """Optimizer steps over which the learning rates rise linearly from 0. 0, the default: no warm-up, as in the
    paper."""
    trained: tuple[str, ...] = ()
    """Parameters that are trained, by the beginning of their path; all others are frozen. `MASK_PARAMETERS` trains the
    mask head alone, for example. (), the default: all but `frozen`."""
    frozen: tuple[str, ...] | None = None
    """Parameters that are not trained, by the beginning of their path, such as ("backbone/stem",). None, the default:
    those that the backbone names, which for a ResNet are the paper's ("backbone/stem", "backbone/stages/0"), because
    the first layers are pretrained and general. (): none."""


@dataclass(kw_only=True)
class TrainingConfig:
    """The run: its length, batches, log and checkpoints."""

    batch_size: int = 64
    """Images per optimizer step, over all devices and micro-batches. The default is the paper's."""
    accumulate: int = 1
    """Gradient accumulation: micro-batches per optimizer step, to save memory. Losses are normalised over the whole
    batch, so the result equals one large batch. 1, the default: none."""
    epochs: int | None = 300
    """Length of the run in epochs. The default is the paper's. Without effect if `steps` is given."""
    steps: int | None = None
    """Length of the run in optimizer steps, instead of `epochs`. None, the default: `epochs` says the length."""
    seed: int = ranged(0, least=0)
    """Seed of the initial parameters, the order and augmentation of the images, and dropout."""
    init_from: str = ""
    """A checkpoint to start from, of any kind that `detr_jax.weights.read_pretrained` reads. Empty, the default: start
    from scratch."""
    follow_checkpoint: bool = False
    """Use the architecture stored in `init_from` instead of `model`. `num_classes`, `dropout`, `dtype`, `remat` and a
    non-zero `num_queries` still come from `model`. If the checkpoint holds only a backbone, only `model.backbone`,
    `model.pixel_mean` and `model.pixel_std` are replaced."""
    follow_image_sizes: bool = True
    """With `follow_checkpoint`: also take the image sizes of ``data`` (sides, crops, rounding) from the checkpoint if
    all of them have their default values, because a model predicts best at the sizes of its training. False keeps the
    values of ``data``."""
    ema_decay: float = ranged(0.0, below=1)
    """Decay of the EMA of the parameters, which is then evaluated instead of them. 0, the default: no EMA, as in the
    paper."""
    log_every: int = 50
    """Optimizer steps between two lines of the log."""
    fsdp: bool = False
    """Shard parameters, EMA and optimizer state over the devices (FSDP) instead of replicating them: less memory, more
    communication. By default they are replicated, because a DETR fits into one device."""
    checkpoint_every: int = 1000
    """Optimizer steps between two checkpoints. There is always one at the end."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep. The one of the best validation is kept in addition."""
    on_nonfinite: OnNonfinite = OnNonfinite.STOP
    """What to do after a loss or a gradient that is not finite. "stop", the default: end the run. "skip": leave the
    parameters, optimizer state and EMA as they were, and go on with the next batch. The batch is written to
    ``WORKDIR/nonfinite`` in both cases, for ``detr-jax replay``."""
    max_skipped_updates: int = ranged(10, least=0)
    """Updates that `on_nonfinite` "skip" may skip until the run stops, counted from each start of the run."""
    on_write_error: OnWriteError = OnWriteError.STOP
    """What to do if a checkpoint or a line of the log cannot be written, for example because the disk is full. "stop",
    the default: end the run. "continue": log it, go on, and try again at the next checkpoint or line. The last
    checkpoint must be written in both cases."""
    early_stop: int = ranged(0, least=0)
    """Validations in a row without a better `evaluation.best` after which the run stops. 0, the default: never."""
    hang_seconds: float = ranged(1800.0, least=0)
    """Longest time in seconds without progress: a step, a batch of a validation, or a save. After it the run writes
    ``WORKDIR/hang.txt``, saves what it can, and exits with code 75. The start of the run and a compilation may take ten
    times as long. Choose more than the slowest step takes. 0: no limit, for debuggers."""

    def faults(self, path: str) -> Iterator[str]:
        """Fields that do not fit one another."""
        if self.batch_size % self.accumulate:
            yield (
                f"{path}accumulate={self.accumulate} must divide {path}batch_size={self.batch_size} into equal "
                "micro-batches."
            )
        if self.steps is None and self.epochs is None:
            yield f"{path}steps and {path}epochs are both unset: give one of them."
        if self.follow_checkpoint and not self.init_from:
            yield (
                f"{path}init_from is empty: give the checkpoint to start from, as --config.{path}init_from=PATH, or "
                f"set {path}follow_checkpoint=False to train from scratch."
            )


@dataclass(kw_only=True)
class EvaluationConfig:
    """Validation during training and at its end."""

    every_epochs: int = ranged(1, least=0)
    """Epochs between two validations. 0: only at the end."""
    batch_size: int = 8
    """Images per batch of a validation, over all devices. It changes speed and memory, and no result."""
    metrics: dict[str, MetricConfig] = field(default_factory=lambda: {"bbox": CocoBox()})
    """The metrics of a validation by name. The default "bbox" logs its numbers under their own names, such as AP. Every
    other entry logs them as ENTRY_NUMBER."""
    best: str = "AP"
    """The logged number of which a larger value makes a better checkpoint. The best checkpoint is kept, and
    `training.early_stop` watches this number. AP, the default, is COCO's main metric."""
    pictures: int = ranged(12, least=0)
    """Number of validation images that are drawn with their predictions into predictions.png at the end of a run, and
    used for the snapshots. 0: none."""
    snapshots: int = ranged(32, least=0)
    """How often to save predictions for those images during a run, more densely early on. ``detr-jax plot --animation``
    renders them. 0: never."""
    picture_threshold: float = ranged(0.5, most=1)
    """Lowest score of a prediction that is drawn, from 0 to 1. 0.5 shows what the model finds more likely than not."""

    def faults(self, path: str) -> Iterator[str]:
        """A `best` that no metric computes, and numbers of the same name."""
        known = [logged_name(entry, name) for entry, metric in self.metrics.items() for name in metric.numbers]
        if self.best not in known:
            yield (
                f"{path}best={self.best!r} is not a number of {path}metrics ({', '.join(self.metrics)}), which are "
                f"{', '.join(known) or 'none'}: choose one of them, or add a metric."
            )
        for name in sorted({name for name in known if known.count(name) > 1}):
            yield f"{path}metrics holds two entries whose numbers are logged as {name}: choose other names of entries."


@dataclass(kw_only=True)
class Config:
    """Everything that a run needs to know."""

    model: DetectorConfig = field(default_factory=DETRConfig)
    """The detector."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where images come from, and how they are prepared."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The matching cost and the loss."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its schedule."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Length, batches, log and checkpoints of the run."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Validation."""

    @property
    def slow_paths(self) -> tuple[str, ...]:
        """``optimizer.slow_parameters``, or if it is None the detector's own default."""
        chosen = self.optimizer.slow_parameters
        return self.model.default_slow if chosen is None else chosen

    @property
    def frozen_paths(self) -> tuple[str, ...]:
        """``optimizer.frozen``, or if it is None the backbone's own default."""
        if self.optimizer.frozen is not None:
            return self.optimizer.frozen
        return tuple(f"backbone/{path}" for path in self.model.backbone.default_frozen)
