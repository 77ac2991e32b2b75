"""What a run starts from: a configuration with nothing left open, its data, and imported weights."""

import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from detr_jax.checkpoints import labels_of_run
from detr_jax.config import (
    IMAGE_SIZES,
    Config,
    ConfigError,
    DataConfig,
    DetectorConfig,
    check,
    check_buckets,
    check_fields,
)
from detr_jax.data import DataError, Source, TrainPlan, open_splits
from detr_jax.data.bucket_counts import settle_train_buckets, settle_val_buckets, total_steps
from detr_jax.data.labelling import check_same_classes
from detr_jax.training.saving import changes, previous_config
from detr_jax.training.step import Model
from detr_jax.weights import ImportedWeights, check_is_path, merge_pretrained, outcome_table, read_pretrained

LEAST_IMAGES = 10_000
"""Below this many images the authors advise to fine-tune (facebookresearch/detr, issues 9 and 125)."""


class Start(NamedTuple):
    """All that is settled before a model is made."""

    given: Config
    """As the user gave it."""
    config: Config
    """With nothing left open."""
    changed: dict[str, tuple[Any, Any]]
    """Fields in which it differs from that of an earlier run in the workdir: (before, now) by path."""
    weights: ImportedWeights | None
    """Those of ``training.init_from``, where they have been read."""
    train_source: Source
    val_source: Source
    plan: TrainPlan
    total_steps: int


def prepare(given: Config, workdir: Path, mesh: Mesh) -> Start:
    """Settles a configuration with what the workdir, the checkpoint to start from and the data say.

    Raises:
      ConfigError, DataError, WeightsError: they do not fit one another, or the devices.
    """
    check_workdir(workdir)
    previous = previous_config(workdir)
    config, weights = settle_model(given, previous)
    check_devices(config, mesh)
    trained = labels_of_run(workdir)
    train_source, val_source = open_splits(config, trained=trained)
    if trained is not None:
        check_same_classes(train_source, trained)
    config = settle_classes(config, train_source, val_source)
    config = settle_buckets(config, previous, train_source, val_source)
    changed = changes(previous, config, workdir) if previous else {}
    training = config.training
    plan = TrainPlan(train_source, config.data, training.batch_size, training.seed, config.model.backbone.stride)
    check_buckets(config.model, plan.buckets)
    steps = total_steps(config, len(train_source))
    return Start(given, config, changed, weights, train_source, val_source, plan, steps)


def check_workdir(workdir: Path) -> None:
    """Checks that a workdir can be made and written to, before data and model take their time; makes nothing.

    Raises:
      ConfigError: it cannot.
    """
    reason = ""
    try:
        existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
        if not existing.is_dir():
            reason = f"{existing} is a file"
        elif not os.access(existing, os.W_OK | os.X_OK):
            reason = f"no permission to write into {existing}"
    except OSError as error:  # of a name that is too long, for example
        reason = error.strerror or str(error)
    if reason:
        raise ConfigError(f"--workdir={workdir} cannot be used ({reason}): choose another folder.")


def check_devices(config: Config, mesh: Mesh) -> None:
    """Checks that the devices can share the batches out.

    Raises:
      ConfigError: a batch has another number of images than a multiple of them.
    """
    for name, size, parts in (
        ("training.batch_size", config.training.batch_size, config.training.accumulate),
        ("evaluation.batch_size", config.evaluation.batch_size, 1),
    ):
        if size % (mesh.size * parts):
            whole = f"{mesh.size} devices" + (f" x training.accumulate={parts}" if parts > 1 else "")
            raise ConfigError(
                f"{name}={size} cannot be shared out over {whole}: use a multiple of {mesh.size * parts}."
            )


def settle_model(config: Config, previous: Config | None) -> tuple[Config, ImportedWeights | None]:
    """The configuration with its model and image sizes as the checkpoint has them, if it is to follow one.

    Only ``model.num_classes`` may be left at 0, for `settle_classes`.

    Args:
      config: as the user gave it.
      previous: that of the earlier run in the same workdir, which is then followed instead of the checkpoint.

    Returns:
      The configuration, and the weights of ``training.init_from`` where they were read.

    Raises:
      ConfigError: the configuration cannot work.
      WeightsError: the checkpoint cannot be read.
    """
    given, follows, weights = config.model, config.training.follow_checkpoint, None
    if config.training.init_from and not previous:
        check_is_path(config.training.init_from)
    if follows and config.training.init_from:
        check_fields(config)
        weights = None if previous else read_start(config)
    else:
        check(config)
    there = previous.model if previous else _model_of(weights, given) if weights else given
    num_queries = given.num_queries or (there.num_queries if follows or previous else 0) or type(given)().num_queries
    num_classes = given.num_classes or (previous.model.num_classes if previous else 0)
    base = there if follows else given
    model = dataclasses.replace(
        base,
        num_classes=num_classes,
        num_queries=num_queries,
        **{name: getattr(given, name) for name in base.run_fields if hasattr(given, name)},
    )
    data = previous.data if previous else weights.data if weights and weights.config else config.data
    if follows:
        config = dataclasses.replace(config, data=_follow_image_sizes(config, data))
    config = dataclasses.replace(config, model=model)
    optimizer = dataclasses.replace(config.optimizer, frozen=config.frozen_paths)
    return check(dataclasses.replace(config, optimizer=optimizer)), weights


def _follow_image_sizes(config: Config, there: DataConfig) -> DataConfig:
    """The data's fields with the image sizes of the checkpoint, unless the user has set one of them."""
    defaults = DataConfig()
    own = any(getattr(config.data, name) != getattr(defaults, name) for name in IMAGE_SIZES)
    if own or not config.training.follow_image_sizes:
        return config.data
    return dataclasses.replace(config.data, **{name: getattr(there, name) for name in IMAGE_SIZES})


def settle_classes(config: Config, *sources: Source) -> Config:
    """The configuration with ``model.num_classes``, where it is 0, as the data needs it: the highest label plus 1.

    Raises:
      DataError: the data has no class, or one below 0.
    """
    if config.model.num_classes:
        return config
    names = {label: name for source in sources for label, name in source.categories.items()}
    if not names:
        raise DataError("model.num_classes=0 takes the classes from the data, which names none: set it.")
    if min(names) < 0:
        raise DataError(f"The data has category {min(names)} ({names[min(names)]!r}): labels must be at least 0.")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=max(names) + 1))


def settle_buckets(config: Config, previous: Config | None, train: Source, val: Source) -> Config:
    """Set `data.num_train_buckets` and `data.num_val_buckets` to the numbers that pay over the run.

    A resumed run keeps the numbers of the earlier run, unless the configuration now gives smaller ones. So its batches
    stay the same if it is resumed with more steps, for which more buckets might pay.

    Args:
      config: as the user gave it, with the model settled.
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


def read_start(config: Config) -> ImportedWeights:
    """The weights of ``training.init_from``.

    Raises:
      WeightsError: they cannot be read.
    """
    model = config.model
    return read_pretrained(
        config.training.init_from,
        dilation=getattr(model.backbone, "dilation", False),
        mask_padding=model.mask_padding,
        num_heads=None if config.training.follow_checkpoint else getattr(model, "num_heads", None),
    )


def start_from(
    model: Model, weights: ImportedWeights, config: Config, class_names: dict[int, str]
) -> tuple[Model, str]:
    """The model with imported values, its own where nothing was imported, and a table of what was loaded.

    ``class_names`` are those of the data, by label: where a class head fits in size and its checkpoint has other
    names, a sentence says so.

    Raises:
      WeightsError: the weights are those of another architecture.
    """
    tree, outcomes = merge_pretrained(model.whole(model.params, model.frozen), weights, config.model)
    params, frozen = model.split(jax.tree.map(_on_device, tree))
    notes = list(weights.notes)
    if weights.config is not None and weights.config.num_classes == config.model.num_classes:
        there = {label: weights.class_names.get(label, name) for label, name in class_names.items()}
        if other := [
            f"{label} {there[label]} -> {name}" for label, name in class_names.items() if there[label] != name
        ]:
            notes.append(f"The class head was trained for other classes, and starts from them: {', '.join(other)}.")
    title = f"starting from {config.training.init_from} ({weights.kind}):"
    return model._replace(params=params, frozen=frozen), "\n".join([title, outcome_table(outcomes), *notes])


def _on_device(leaf: np.ndarray | jax.Array | jax.ShapeDtypeStruct) -> jax.Array | jax.ShapeDtypeStruct:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)


def _model_of(weights: ImportedWeights, given: DetectorConfig) -> DetectorConfig:
    """The architecture of a checkpoint; around a backbone alone, that of the configuration."""
    return weights.config or dataclasses.replace(
        given, backbone=weights.backbone, pixel_mean=weights.pixel_mean, pixel_std=weights.pixel_std
    )
