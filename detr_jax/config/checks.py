"""Checks of a configuration: first each part by itself, then the relations between parts."""

from collections.abc import Iterator, Sequence

from detr_jax.config.data import DataConfig
from detr_jax.config.effects import source_field_faults
from detr_jax.config.error import ConfigError
from detr_jax.config.fields import field_faults, own_faults
from detr_jax.config.json_values import storage_faults
from detr_jax.config.model import DetectorConfig
from detr_jax.config.run import Config


def check_fields(config: Config) -> None:
    """Checks the type, the choice and the range of each field.

    Raises:
      ConfigError: one sentence per fault.
    """
    _raise(field_faults(config, ""))


def check(config: Config) -> Config:
    """Checks a configuration and returns it.

    Raises:
      ConfigError: a run with the configuration cannot work. The message has one sentence per fault. Each sentence names
        the field, its value and what would be right.
    """
    _raise(list(field_faults(config, "")) or _relation_faults(config))
    return config


def check_model(model: DetectorConfig) -> None:
    """Checks the fields of ``model``, and the relations between them.

    Raises:
      ConfigError: the model cannot be built; one sentence per fault.
    """
    _raise(list(field_faults(model, "model.")) or own_faults(model, "model."))


def check_data(data: DataConfig) -> None:
    """Check the fields of ``data``, and that they say where a data set is.

    Raises:
      ConfigError: something is missing or wrong; one sentence per fault.
    """
    _raise(list(field_faults(data, "data.")) or _opening_faults(data))


def check_prediction(config: Config) -> None:
    """Check the fields of ``data`` for prediction, which needs no data set.

    Raises:
      ConfigError: a value is wrong, or does not fit the model; one sentence per fault.
    """
    _raise(list(field_faults(config.data, "data.")) or _data_bucket_faults(config.model, config.data))


def check_buckets(model: DetectorConfig, buckets: Sequence[tuple[int, int]]) -> None:
    """Check buckets (height, width) in pixels that are not in the config, as `check` does those in the config.

    Raises:
      ConfigError: the model cannot take a bucket; one sentence per fault.
    """
    _raise(_bucket_faults(model, buckets))


def _raise(faults: Iterator[str] | list[str]) -> None:
    if sentences := list(faults):
        raise ConfigError("\n".join(sentences))


def _relation_faults(config: Config) -> Iterator[str]:
    """Faults of parts and, if there are none, between them and in config.json, if each field by itself is right."""
    if faults := list(own_faults(config, "")):
        yield from faults
        return
    yield from _data_bucket_faults(config.model, config.data)
    if config.loss.classification != config.model.classification:
        yield (
            f"model.classification={config.model.classification!r}, but loss.terms and loss.costs read the outputs of "
            f"the class head as {config.loss.classification!r}: use terms and costs for "
            f"{config.model.classification!r}, or change model.classification."
        )
    yield from _mask_faults(config)
    yield from _source_faults(config.data)
    yield from storage_faults(config)


def _mask_faults(config: Config) -> Iterator[str]:
    """What a loss or a metric of masks lacks."""
    users = [f"loss.terms.{name}" for name in config.loss.mask_terms]
    users += [f"evaluation.metrics.{name}" for name, metric in config.evaluation.metrics.items() if metric.needs_masks]
    if not users:
        return
    if config.model.mask_stride is None:
        yield (
            f"{users[0]} needs masks, and the model predicts none: set model.masks=MaskHeadConfig(), for a "
            f"{type(config.model).__name__} that has this field, or drop {users[0]}."
        )
    if not config.data.masks:
        yield f"{users[0]} needs masks, and data.masks=False does not read them: set data.masks=True."


def _opening_faults(data: DataConfig) -> Iterator[str]:
    yield from own_faults(data, "data.")
    yield from _source_faults(data)


def _source_faults(data: DataConfig) -> Iterator[str]:
    yield from data.source_faults()
    yield from source_field_faults(data)


def _data_bucket_faults(model: DetectorConfig, data: DataConfig) -> Iterator[str]:
    yield from _bucket_faults(model, data.train_buckets, "data.train_buckets")
    yield from _bucket_faults(model, data.val_buckets, "data.val_buckets")


def _bucket_faults(model: DetectorConfig, buckets: Sequence[tuple[int, int]], field: str = "") -> Iterator[str]:
    """Faults of buckets for a model; ``field`` holds them, or is empty if they are not in the config."""
    stride, limit = model.stride, model.largest_bucket
    for bucket in buckets:
        beginning = f"{field} holds {bucket}: each" if field else f"The bucket {bucket}"
        if len(bucket) != 2 or any(side < 1 or side % stride for side in bucket):
            yield f"{beginning} must be a (height, width) of positive multiples of {stride}, the stride of the model."
        elif limit is not None and max(bucket) > limit:
            yield (
                f"{beginning} must have sides of at most {limit} pixels, the limit of the model. A DETR has this limit "
                "with model.position_embedding='learned' and none with 'sine'."
            )
