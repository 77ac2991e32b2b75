"""The values of a configuration in terms of JSON, and back.

JSON names a class as ``"kind": "module:Class"``, only where it is not the class that the default has at that place.
Fields that a class computes itself (``init=False``) are not written.
"""

import dataclasses
import enum
import json
import types
import typing
from collections.abc import Iterator
from typing import Any

from detr_jax.config.error import ConfigError
from detr_jax.config.fields import alternatives, has_type, missing_members
from detr_jax.config.kinds import class_named, kind_of
from detr_jax.config.paths import differences
from detr_jax.config.run import Config


def to_values(config: Any) -> Any:
    """A configuration, or a part of it, in terms of JSON.

    Raises:
      ConfigError: a class has a field called "kind", or a value that JSON does not have.
    """
    return _written(config, _default(type(config)), "")


def from_values(values: Any) -> Config:
    """The configuration that `to_values` wrote, without checks of its fields.

    Raises:
      ConfigError: a field or a class does not exist, or a section is not an object.
    """
    config: Config = read_value(values, Config(), Config, "")
    return config


def storage_faults(config: Config) -> Iterator[str]:
    """Sentences about what a file cannot hold, or would give back as something else.

    The fields must be right by themselves (`detr_jax.config.fields.field_faults`).
    """
    try:
        restored = from_values(json.loads(json.dumps(to_values(config))))
    except ConfigError as error:
        yield str(error)
        return
    for path, (value, back) in differences(config, restored).items():
        if dataclasses.is_dataclass(value) and repr(value) == repr(back):
            yield f"{path} has the class {type(value).__name__}, which was defined again since: create it again."
        else:
            yield f"{path}={value!r} would be read from config.json as {back!r}: declare the exact type of the field."


def _written(value: Any, default: Any, path: str) -> Any:
    """A value in terms of JSON; ``default`` is what the default configuration has there."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = {}
        if type(value) is not type(default):
            kind, default = {"kind": kind_of(type(value))}, _default(type(value))
        names = [f.name for f in dataclasses.fields(value) if f.init]
        if "kind" in names:
            raise ConfigError(f"{path}kind cannot be written as JSON, which names classes by it: rename the field.")
        return kind | {
            name: _written(getattr(value, name), getattr(default, name, None), f"{path}{name}.") for name in names
        }
    if isinstance(value, dict):
        if wrong := [name for name in value if not isinstance(name, str)]:
            raise ConfigError(f"{path.rstrip('.')} has the key {wrong[0]!r}: keys must be texts, as in JSON.")
        there = default if isinstance(default, dict) else {}
        return {name: _written(entry, there.get(name), f"{path}{name}.") for name, entry in value.items()}
    return _plain_written(value, path.rstrip("."))


def _plain_written(value: Any, path: str) -> Any:
    """A value that holds no named fields in terms of JSON."""
    if isinstance(value, list | tuple):
        return [_plain_written(item, path) for item in value]
    if value is None or (isinstance(value, bool | int | float | str) and value == value):  # NaN differs from itself
        return value
    if dataclasses.is_dataclass(value) or isinstance(value, dict):
        raise ConfigError(f"{path} holds {value!r} in a list or tuple: use a dictionary, which gives objects names.")
    raise ConfigError(
        f"{path} holds {value!r} ({type(value).__name__}), which cannot be written as JSON: use numbers, texts, True, "
        "False or None, or lists, tuples and dictionaries of them."
    )


def read_value(values: Any, default: Any, hint: Any, path: str) -> Any:
    """The value that JSON has for a field of type ``hint``.

    Args:
      values: of JSON.
      default: what the default configuration has there.
      hint: the annotation of the field.
      path: the path of the field with a dot at its end; empty for the whole configuration.

    Raises:
      ConfigError: a field or a class does not exist, or a section is not an object.
    """
    cls = _class_of(values, default, hint, path)
    if cls is not None:
        if not isinstance(values, dict):
            raise ConfigError(f"{_place(path)} must be a JSON object, not {values!r}.")
        return _read_object(cls, values, default, path)
    if isinstance(values, dict):
        there = default if isinstance(default, dict) else {}
        entry = next((typing.get_args(one)[1] for one in alternatives(hint) if typing.get_origin(one) is dict), Any)
        return {name: read_value(value, there.get(name), entry, f"{path}{name}.") for name, value in values.items()}
    return _plain_read(values, hint)


def _class_of(values: Any, default: Any, hint: Any, path: str) -> type | None:
    """The dataclass of a value in JSON; None if it is a plain value or a dictionary."""
    declared = [one for one in alternatives(hint) if dataclasses.is_dataclass(one)]
    there = type(default) if dataclasses.is_dataclass(default) else None
    if isinstance(values, dict) and (there or declared) and "kind" in values:
        return class_named(values["kind"], _place(path))
    if values is None and types.NoneType in alternatives(hint):
        return None
    if there is None and declared and missing_members(typing.cast(type, declared[0])):
        raise ConfigError(f'{_place(path)} must be a JSON object that names its class, as in "kind": "module:Class".')
    return there or typing.cast(type, declared[0]) if there or declared else None


def _read_object(cls: type, values: dict[str, Any], default: Any, path: str) -> Any:
    default = default if type(default) is cls else _default(cls)
    hints = typing.get_type_hints(cls)
    given = {f.name: f.init for f in dataclasses.fields(cls)}
    found = {}
    for name, value in values.items():
        if name == "kind" and name not in given:
            continue
        if name not in given:
            raise ConfigError(f"{path}{name} is not a field of the configuration; here are {', '.join(sorted(given))}.")
        if given[name]:
            found[name] = read_value(value, getattr(default, name, None), hints[name], f"{path}{name}.")
    try:
        return cls(**found) if default is None else dataclasses.replace(default, **found)
    except (TypeError, ValueError) as error:  # of a class that is not this package's
        raise ConfigError(f"{_place(path)} cannot be created as {cls.__qualname__}: {error}.") from None


def _plain_read(value: Any, hint: Any) -> Any:
    """A value of JSON as a hint wants it: a tuple for a list, unless the hint says list, and a choice for its text."""
    for one in alternatives(hint):
        if isinstance(value, list):
            found = _sequence(value, one)
            if has_type(found, one):
                return found
        elif isinstance(one, type) and issubclass(one, enum.Enum) and value in [choice.value for choice in one]:
            return one(value)
    return _sequence(value, Any) if isinstance(value, list) else value


def _sequence(items: list[Any], hint: Any) -> list[Any] | tuple[Any, ...]:
    """Items of a list of JSON, as a list if ``hint`` is a list, else as a tuple."""
    kind, hints = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is tuple and len(hints) == len(items) and Ellipsis not in hints:
        return tuple(map(_plain_read, items, hints))
    item = hints[0] if kind in (list, tuple) and hints else Any
    found = [_plain_read(one, item) for one in items]
    return found if kind is list else tuple(found)


def _place(path: str) -> str:
    return path.rstrip(".") or "The configuration"


def _default(cls: Any) -> Any:
    """An instance with all defaults; None if the class needs arguments."""
    try:
        return cls()
    except TypeError:
        return None
