"""A configuration as JSON, the paths of its fields, and the comparison of two."""

import dataclasses
import difflib
import json
import typing
from typing import Any

from detr_jax.config.checks import check_fields
from detr_jax.config.error import ConfigError
from detr_jax.config.run import Config


def to_json(config: Any) -> str:
    """The configuration (or a part of it) as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote; fields that the text lacks take their defaults.

    Raises:
      ConfigError: the text is not JSON, or holds a field that does not exist or a value that cannot be.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"The configuration is not JSON: {error}.") from None
    config = _from_values(Config, _current(values), "")
    check_fields(config)
    return config


_OLD_DEFAULTS = {  # of fields of data that are empty now if the folder's own layout is to be found
    "train_images": "train2017",
    "train_annotations": "annotations/instances_train2017.json",
    "val_images": "val2017",
    "val_annotations": "annotations/instances_val2017.json",
    "yolo_file": "data.yaml",
    "train_split": "train",
}


def _current(values: Any) -> Any:
    """Values of a configuration with empty fields for defaults that an earlier version wrote out."""
    data = values.get("data") if isinstance(values, dict) else None
    if not isinstance(data, dict) or "exif" in data:
        return values
    old = {name: "" for name, default in _OLD_DEFAULTS.items() if data.get(name) == default}
    return values | {"data": data | old}


def _from_values(cls: type, values: Any, path: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{path.rstrip('.') or 'The configuration'} must be a JSON object, not {values!r}.")
    hints = typing.get_type_hints(cls)
    fields = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(f"{path}{name} is not a field of the configuration; here are {', '.join(sorted(hints))}.")
        if dataclasses.is_dataclass(hints[name]):
            value = _from_values(typing.cast(type, hints[name]), value, f"{path}{name}.")
        fields[name] = _lists_to_tuples(value)
    return cls(**fields)


def _lists_to_tuples(value: Any) -> Any:
    return tuple(map(_lists_to_tuples, value)) if isinstance(value, list) else value


def unknown_field(path: str) -> str | None:
    """A sentence about a path such as ``training.stepz`` that names no field; None where it names one."""
    node: Any = Config
    for depth, name in enumerate(path.split(".")):
        hints = typing.get_type_hints(node) if dataclasses.is_dataclass(node) else {}
        if name not in hints:
            parent = ".".join(path.split(".")[:depth])
            close = difflib.get_close_matches(name, hints, n=1)
            there = f"{parent or 'the configuration'} has {', '.join(hints)}" if hints else f"{parent} is a value"
            hint = f"did you mean {'.'.join(filter(None, (parent, close[0])))}?" if close else f"{there}."
            return f"There is no configuration field {path}: {hint}"
        node = hints[name]
    return None


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ, as ``{"optimizer.learning_rate": (old, new)}``."""
    found: dict[str, tuple[Any, Any]] = {}
    for f in dataclasses.fields(old):
        name, before, after = f"{path}{f.name}", getattr(old, f.name), getattr(new, f.name)
        if dataclasses.is_dataclass(before):
            found |= differences(before, after, f"{name}.")
        elif before != after:
            found[name] = (before, after)
    return found
