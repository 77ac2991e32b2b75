"""A configuration as JSON, the paths of its fields, and the comparison of two.

All of it follows the values: a field may hold any subclass of its declared class, and a dictionary holds named entries.
JSON names a class as ``"kind": "module:Class"``, only where it is not the class that the default has at that place.
"""

import dataclasses
import difflib
import enum
import importlib
import json
import sys
import types
import typing
from collections.abc import Iterable
from typing import Any

from detr_jax.config.checks import check_fields
from detr_jax.config.error import ConfigError
from detr_jax.config.renamed import current_path, take_renamed, with_old_defaults
from detr_jax.config.run import Config

_PACKAGE = __name__.partition(".")[0]


def to_json(config: Any) -> str:
    """Write the configuration, or a part of it, as indented JSON.

    Raises:
      ConfigError: a class has a field called "kind", or a value that JSON does not have.
    """
    values = _to_values(config, _default(type(config)), "")
    try:
        return json.dumps(values, indent=2)
    except TypeError as error:
        raise ConfigError(f"The configuration cannot be written as JSON: {error}.") from None


def from_json(text: str) -> Config:
    """Read what `to_json` wrote. Fields that the text lacks take their defaults, and a dictionary is read as a whole.

    A class of this package is imported if the text names it. A class of another module is used only if that module is
    imported already, so that reading a checkpoint never runs foreign code.

    Raises:
      ConfigError: the text is not JSON, holds a field that does not exist or a value that is not allowed, or names a
        class that is not there.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"The configuration is not JSON: {error}.") from None
    values, renamed = take_renamed(with_old_defaults(values))
    config: Config = _read(values, Config(), Config, "")
    for path, value in renamed:
        _assign(config, path, value)
    check_fields(config)
    return config


def _to_values(value: Any, default: Any, path: str) -> Any:
    """A value in terms of JSON; ``default`` is what the default configuration has there."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = {}
        if type(value) is not type(default):
            kind, default = {"kind": f"{type(value).__module__}:{type(value).__qualname__}"}, _default(type(value))
        names = [f.name for f in dataclasses.fields(value)]
        if "kind" in names:
            raise ConfigError(f"{path}kind cannot be written as JSON, which names classes by it: rename the field.")
        return kind | {
            name: _to_values(getattr(value, name), getattr(default, name, None), f"{path}{name}.") for name in names
        }
    if isinstance(value, dict):
        there = default if isinstance(default, dict) else {}
        return {name: _to_values(entry, there.get(name), f"{path}{name}.") for name, entry in value.items()}
    return value


def _read(values: Any, default: Any, hint: Any, path: str) -> Any:
    """The value that `_to_values` wrote, for a field of type ``hint``."""
    cls = _class_of(values, default, hint, path)
    if cls is not None:
        if not isinstance(values, dict):
            raise ConfigError(f"{path.rstrip('.') or 'The configuration'} must be a JSON object, not {values!r}.")
        return _read_object(cls, values, default, path)
    if isinstance(values, dict):
        there = default if isinstance(default, dict) else {}
        entry = (typing.get_args(hint) or (str, Any))[-1]
        return {name: _read(value, there.get(name), entry, f"{path}{name}.") for name, value in values.items()}
    return _plain(values, hint)


def _class_of(values: Any, default: Any, hint: Any, path: str) -> type | None:
    """The dataclass of a value in JSON; None if it is a plain value or a dictionary."""
    declared = [one for one in _alternatives(hint) if dataclasses.is_dataclass(one)]
    there = type(default) if dataclasses.is_dataclass(default) else None
    if isinstance(values, dict) and (there or declared) and "kind" in values:
        return _resolve(values["kind"], path)
    if values is None and types.NoneType in _alternatives(hint):
        return None
    return there or typing.cast(type, declared[0]) if there or declared else None


def _read_object(cls: type, values: dict[str, Any], default: Any, path: str) -> Any:
    default = default if type(default) is cls else _default(cls)
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    found = {}
    for name, value in values.items():
        if name == "kind" and name not in names:
            continue
        if name not in names:
            raise ConfigError(f"{path}{name} is not a field of the configuration; here are {', '.join(sorted(names))}.")
        found[name] = _read(value, getattr(default, name, None), hints[name], f"{path}{name}.")
    try:
        return cls(**found) if default is None else dataclasses.replace(default, **found)
    except (TypeError, ValueError) as error:  # of a class that is not this package's
        raise ConfigError(f"{path.rstrip('.')} cannot be created as {cls.__qualname__}: {error}.") from None


def _resolve(kind: Any, path: str) -> type:
    """The class that JSON names; only modules of this package are imported for it."""
    module, colon, qualname = kind.partition(":") if isinstance(kind, str) else ("", "", "")
    place = path.rstrip(".") or "The configuration"
    if not (module and colon and qualname):
        raise ConfigError(f'{place} has kind={kind!r}: it must name a class as "module:Class".')
    if module.partition(".")[0] == _PACKAGE:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{place} has kind={kind!r}, and {error}: it is of another version.") from None
    elif module not in sys.modules:
        raise ConfigError(
            f"{place} has kind={kind!r}, and the module {module} is not imported: import {module} before, or "
            f"give detr-jax its file, as in detr-jax --import {module}.py. Reading a configuration never runs code by "
            "itself."
        )
    found: Any = sys.modules[module]
    for name in qualname.split("."):
        found = getattr(found, name, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"{place} has kind={kind!r}, and {module} has no dataclass {qualname}.")
    return found


def _default(cls: Any) -> Any:
    """An instance with all defaults; None if the class needs arguments."""
    try:
        return cls()
    except TypeError:
        return None


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _plain(value: Any, hint: Any) -> Any:
    """A value of JSON with tuples for lists, and a choice as its `enum.StrEnum`."""
    if isinstance(value, list):
        return tuple(_plain(item, None) for item in value)
    for one in _alternatives(hint):
        if isinstance(one, type) and issubclass(one, enum.Enum) and value in [choice.value for choice in one]:
            return one(value)
    return value


def _assign(config: Config, path: str, value: Any) -> None:
    """Set the field of a path to what JSON has under an earlier name of it."""
    *parents, name = path.split(".")
    node: Any = config
    for parent in parents:
        node = node[parent] if isinstance(node, dict) else getattr(node, parent)
    if isinstance(node, dict):
        node[name] = _read(value, node[name], Any, f"{path}.")
    else:
        setattr(node, name, _read(value, getattr(node, name), typing.get_type_hints(type(node))[name], f"{path}."))


def unknown_field(path: str, config: Any = None) -> str | None:
    """Say what is wrong with a path such as ``training.stepz`` that names no field; None if it names one.

    Args:
      path: names separated by dots; entries of a dictionary are named as fields are.
      config: the configuration whose values are followed; by default the default one.
    """
    node: Any = Config() if config is None else config
    for depth, name in enumerate(path.split(".")):
        names = list(_children(node))
        if name not in names:
            if (now := current_path(path)) != path:
                return f"There is no configuration field {path}: it is {now} now."
            parent = ".".join(path.split(".")[:depth])
            close = difflib.get_close_matches(name, names, n=1)
            there = f"{parent or 'the configuration'} has {', '.join(names)}" if names else f"{parent} is a value"
            hint = f"did you mean {'.'.join(filter(None, (parent, close[0])))}?" if close else f"{there}."
            return f"There is no configuration field {path}: {hint}"
        node = _children(node)[name]
    return None


def _children(node: Any) -> dict[str, Any]:
    """Fields of a dataclass or entries of a dictionary by name; empty for a plain value."""
    if dataclasses.is_dataclass(node):
        return {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    return node if isinstance(node, dict) else {}


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ, as ``{"optimizer.learning_rate": (old, new)}``.

    An object whose class differs, and an entry that only one of them has (None in the other), is one difference.
    """
    found: dict[str, tuple[Any, Any]] = {}
    before, after = _children(old), _children(new)
    for name in _in_both_orders(before, after):
        one, other = before.get(name), after.get(name)
        if type(one) is type(other) and (dataclasses.is_dataclass(one) or isinstance(one, dict)):
            found |= differences(one, other, f"{path}{name}.")
        elif one != other:
            found[f"{path}{name}"] = (one, other)
    return found


def _in_both_orders(before: Iterable[str], after: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys([*before, *after])
