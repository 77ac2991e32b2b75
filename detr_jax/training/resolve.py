"""Resolves a configuration: sets what it leaves open from the workdir, the initial checkpoint and the data."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from detr_jax.checkpoints import labels_of_run, newest_checkpoint
from detr_jax.config import (
    Classification,
    Config,
    ConfigError,
    DamagedConfigError,
    DataConfig,
    DetectorConfig,
    LossConfig,
    check,
    check_buckets,
    check_fields,
    differences,
    focal_costs,
    focal_terms,
)
from detr_jax.config.loss import default_costs, default_terms
from detr_jax.data import DataError, Source, TrainPlan, open_splits
from detr_jax.data.bucket_counts import settle_train_buckets, settle_val_buckets, total_steps
from detr_jax.data.labelling import check_same_classes
from detr_jax.training.from_data import image_sizes, queries_for, sizes_for, with_open_sizes
from detr_jax.training.initial_weights import read_initial_weights
from detr_jax.weights import ImportedWeights, check_is_path
from detr_jax.workdir import CONFIG_FILE, read_run_config


@dataclass(frozen=True, eq=False)
class Resolved:
    """A resolved configuration and the data of a run."""

    given: Config
    """The configuration that the user gave."""
    config: Config
    """The configuration with nothing left open."""
    changed: dict[str, tuple[Any, Any]]
    """Fields that differ from an earlier run in the workdir, as ``{path: (before, now)}``."""
    weights: ImportedWeights | None
    """The weights of ``training.init_from``, if they have been read already."""
    train_source: Source
    val_source: Source
    plan: TrainPlan
    """The plan of the training batches."""
    total_steps: int
    """Optimizer steps of the whole run."""

    @property
    def changes_metrics(self) -> bool:
        """Whether a changed field may change the metrics, so that validations of the earlier run do not count."""
        return any(name.partition(".")[0] in ("data", "evaluation", "model") for name in self.changed)

    def validates(self, step: int) -> bool:
        """Whether the model is validated after this step."""
        every = self.config.evaluation.every_epochs * self.plan.steps_per_epoch
        return step == self.total_steps or bool(every and step and step % every == 0)


def resolve(given: Config, workdir: Path, mesh: Mesh) -> Resolved:
    """Resolves a configuration and opens the data. Writes nothing.

    Raises:
      ConfigError, DataError, WeightsError: configuration, data, workdir, checkpoint and devices do not fit together.
    """
    check_workdir(workdir)
    previous = previous_config(workdir)
    config, weights = resolve_model(given, previous)
    check_devices(config, mesh)
    trained = labels_of_run(workdir)
    train_source, val_source = open_splits(config, trained=trained)
    if trained is not None:
        check_same_classes(train_source, trained)
    config = resolve_from_data(config, previous, train_source, val_source)
    config = resolve_buckets(config, previous, train_source, val_source)
    changed = changed_fields(previous, config, workdir) if previous else {}
    training = config.training
    plan = TrainPlan(train_source, config.data, training.batch_size, training.seed, config.model.stride)
    check_buckets(config.model, plan.buckets)
    steps = total_steps(config, len(train_source))
    return Resolved(given, config, changed, weights, train_source, val_source, plan, steps)


def check_workdir(workdir: Path) -> None:
    """Checks that a workdir can be created and written to, before data and model take their time. Creates nothing.

    Raises:
      ConfigError: it cannot be created or written to.
    """
    reason = ""
    try:
        existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        if not existing.is_dir():
            reason = f"{existing} is a file"
        elif not os.access(existing, os.W_OK | os.X_OK):
            reason = f"no permission to write into {existing}"
    except OSError as error:  # for example if a name is too long
        reason = error.strerror or str(error)
    if reason:
        raise ConfigError(f"--workdir={workdir} cannot be used ({reason}): choose another folder.")


def previous_config(workdir: Path) -> Config | None:
    """The configuration of an earlier run in this workdir. None if that run left no checkpoint.

    Raises:
      ConfigError: its file is damaged, or cannot be used, for example because a module is not imported.
    """
    if newest_checkpoint(workdir) is None:
        return None
    try:
        return read_run_config(workdir)
    except DamagedConfigError as error:
        raise DamagedConfigError(f"{error} Delete {CONFIG_FILE} to resume with the given configuration.") from None


def check_devices(config: Config, mesh: Mesh) -> None:
    """Checks that the devices can share each batch and micro-batch.

    Raises:
      ConfigError: the number of images is not a multiple of the number of devices.
    """
    for name, size, micro_batches in (
        ("training.batch_size", config.training.batch_size, config.training.accumulate),
        ("evaluation.batch_size", config.evaluation.batch_size, 1),
    ):
        multiple = mesh.size * micro_batches
        if size % multiple:
            shares = f"{mesh.size} devices" + (f" x training.accumulate={micro_batches}" if micro_batches > 1 else "")
            raise ConfigError(f"{name}={size} cannot be divided among {shares}: use a multiple of {multiple}.")


def resolve_model(config: Config, previous: Config | None) -> tuple[Config, ImportedWeights | None]:
    """Takes the model and the image sizes from the checkpoint if ``training.follow_checkpoint`` is set.

    ``model.num_classes`` and ``model.num_queries`` may stay 0. `resolve_from_data` sets them.

    Args:
      config: the configuration that the user gave.
      previous: the configuration of the earlier run in the same workdir, which replaces the checkpoint.

    Returns:
      The configuration, and the weights of ``training.init_from`` if they were read.

    Raises:
      ConfigError: the configuration is invalid.
      WeightsError: the checkpoint cannot be read.
    """
    given, follows, weights = config.model, config.training.follow_checkpoint, None
    if config.training.init_from and not previous:
        check_is_path(config.training.init_from)
    if follows and config.training.init_from:
        check_fields(config)
        weights = None if previous else read_initial_weights(config)
    else:
        check(config)
    stored = previous.model if previous else _model_of(weights, given) if weights else given
    num_queries = given.num_queries or (stored.num_queries if follows or previous else 0)
    num_classes = given.num_classes or (previous.model.num_classes if previous else 0)
    base = stored if follows else given
    model = dataclasses.replace(
        base,
        num_classes=num_classes,
        num_queries=num_queries,
        **{name: getattr(given, name) for name in (*base.run_fields, *base.added_fields) if hasattr(given, name)},
    )
    data = previous.data if previous else weights.data if weights and weights.config else config.data
    if follows:
        loss = _follow_class_head(config.loss, model.classification)
        config = dataclasses.replace(config, data=_follow_image_sizes(config, data), loss=loss)
    config = dataclasses.replace(config, model=model)
    optimizer = dataclasses.replace(config.optimizer, frozen=config.frozen_paths)
    if config.slow_paths:  # runs of earlier versions have None, which is none for DETR
        optimizer = dataclasses.replace(optimizer, slow_parameters=config.slow_paths)
    return check(dataclasses.replace(config, optimizer=optimizer)), weights


def _follow_class_head(loss: LossConfig, classification: Classification) -> LossConfig:
    """Takes the loss that suits the checkpoint's class head, unless the user has chosen terms or costs."""
    chosen = (loss.terms, loss.costs) != (default_terms(), default_costs())
    if chosen or classification != Classification.SIGMOID:
        return loss
    return dataclasses.replace(loss, terms=focal_terms(), costs=focal_costs())


def _follow_image_sizes(config: Config, stored: DataConfig) -> DataConfig:
    """Takes the image sizes of the checkpoint into the data's fields, unless the user has set one of them."""
    own = image_sizes(config.data) != image_sizes(DataConfig())
    if own or not config.training.follow_image_sizes:
        return config.data
    return dataclasses.replace(config.data, **image_sizes(stored))


def _model_of(weights: ImportedWeights, given: DetectorConfig) -> DetectorConfig:
    """The architecture of a checkpoint. If it holds only a backbone, the rest is taken from the configuration."""
    return weights.config or dataclasses.replace(
        given, backbone=weights.backbone, pixel_mean=weights.pixel_mean, pixel_std=weights.pixel_std
    )


def resolve_from_data(config: Config, previous: Config | None, train: Source, val: Source) -> Config:
    """Sets what the data decides: the number of classes and queries if they are 0, and image sizes if asked for.

    Args:
      config: the configuration that the user gave, with the model resolved.
      previous: the configuration of the earlier run in the same workdir, whose image sizes are kept.
      train: the training images.
      val: the validation images.

    Raises:
      DataError: the data has no class, or a label below 0.
    """
    model, data = config.model, config.data
    model = dataclasses.replace(
        model,
        num_classes=model.num_classes or _classes_of(train, val),
        num_queries=model.num_queries or queries_for(train),
    )
    model = model.with_room_for(train.max_objects)
    if data.sizes_from_data:
        data = sizes_for(data, train) if previous is None else with_open_sizes(data, image_sizes(previous.data))
    return check(dataclasses.replace(config, model=model, data=data))


def _classes_of(*sources: Source) -> int:
    """The highest label of the data plus 1."""
    names = {label: name for source in sources for label, name in source.categories.items()}
    if not names:
        raise DataError("model.num_classes=0 takes the classes from the data, but the data names no class: set it.")
    if min(names) < 0:
        raise DataError(f"The data has label {min(names)} ({names[min(names)]!r}): labels must be at least 0.")
    return max(names) + 1


def resolve_buckets(config: Config, previous: Config | None, train: Source, val: Source) -> Config:
    """Sets ``data.num_train_buckets`` and ``data.num_val_buckets`` to the numbers that pay over the run.

    A resumed run keeps the numbers of the earlier run, unless the configuration now gives smaller ones. So its batches
    stay the same if it is resumed with more steps, for which more buckets might pay.

    Args:
      config: the configuration that the user gave, with the model resolved.
      previous: the configuration of the earlier run in the same workdir.
      train: the training images.
      val: the validation images.
    """
    if previous is None:
        return settle_val_buckets(settle_train_buckets(config, train), val, len(train))
    data = dataclasses.replace(
        config.data,
        num_train_buckets=min(config.data.num_train_buckets, previous.data.num_train_buckets),
        num_val_buckets=min(config.data.num_val_buckets, previous.data.num_val_buckets),
    )
    return dataclasses.replace(config, data=data)


def changed_fields(previous: Config, config: Config, workdir: Path) -> dict[str, tuple[Any, Any]]:
    """The fields that changed since an earlier run in this workdir, as ``{path: (before, now)}``.

    Raises:
      ConfigError: the class of the model or one of its fields, except for its ``run_fields``, changed, so that its
        checkpoints do not fit any more.
    """
    changed = differences(previous, config)
    for name, (old, new) in changed.items():
        section, _, field = name.partition(".")
        may_change = {field, field.partition(".")[0]} & set(config.model.run_fields)
        if section == "model" and not may_change:
            raise ConfigError(
                f"{name} was {_shown(old)} when {workdir} was trained and is {_shown(new)} now: "
                "set it back, or choose another --workdir."
            )
    return changed


def _shown(value: Any) -> str:
    """A value for a message: an object as the name of its class."""
    return type(value).__name__ if dataclasses.is_dataclass(value) else repr(value)
