"""What a configuration must fulfil to work: each part by itself, and parts against each other."""

from collections.abc import Iterator, Sequence

from detr_jax.config.data import DataConfig
from detr_jax.config.effects import source_field_faults
from detr_jax.config.error import ConfigError
from detr_jax.config.fields import field_faults, own_faults
from detr_jax.config.model import LEARNED_CELLS, ModelConfig
from detr_jax.config.run import Config


def check_fields(config: Config) -> None:
    """Check each field by itself: its type, choice and range.

    Raises:
      ConfigError: one sentence per fault.
    """
    _raise(field_faults(config, ""))


def check(config: Config) -> Config:
    """Return the configuration if it can work.

    Raises:
      ConfigError: it cannot. There is one sentence per fault; each names the field, its value and what would be right.
    """
    _raise(list(field_faults(config, "")) or _relation_faults(config))
    return config


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
    _raise(list(field_faults(config.data, "data.")) or _bucket_faults(config.model, config.data))


def check_buckets(model: ModelConfig, buckets: Sequence[tuple[int, int]]) -> None:
    """Check buckets (height, width) in pixels that were chosen from the data, as `check` does those in the config.

    Raises:
      ConfigError: the model's learned positions do not reach over one of them.
    """
    for fault in _position_faults(model, buckets):
        raise ConfigError(fault)


def _raise(faults: Iterator[str] | list[str]) -> None:
    if sentences := list(faults):
        raise ConfigError("\n".join(sentences))


def _relation_faults(config: Config) -> Iterator[str]:
    """Faults of parts and between them, if each field by itself is right."""
    yield from own_faults(config, "")
    yield from _bucket_faults(config.model, config.data)
    yield from _source_faults(config.data)


def _opening_faults(data: DataConfig) -> Iterator[str]:
    yield from own_faults(data, "data.")
    yield from _source_faults(data)


def _source_faults(data: DataConfig) -> Iterator[str]:
    yield from data.source_faults()
    yield from source_field_faults(data)


def _bucket_faults(model: ModelConfig, data: DataConfig) -> Iterator[str]:
    for name in ("train_buckets", "val_buckets"):
        for bucket in getattr(data, name):
            if len(bucket) != 2 or any(side < 1 or side % model.backbone.stride for side in bucket):
                yield (
                    f"data.{name} holds {bucket}: each must be a (height, width) of positive multiples of "
                    f"{model.backbone.stride}, the stride of the backbone."
                )
    yield from _position_faults(model, (*data.train_buckets, *data.val_buckets))


def _position_faults(model: ModelConfig, buckets: Sequence[tuple[int, int]]) -> Iterator[str]:
    for bucket in buckets if model.position_embedding == "learned" else ():
        if max(bucket) > LEARNED_CELLS * model.backbone.stride:
            yield (
                f"model.position_embedding='learned' reaches {LEARNED_CELLS} x {LEARNED_CELLS} cells of "
                f"{model.backbone.stride} pixels, but the data's bucket {bucket} is larger: use 'sine'."
            )
