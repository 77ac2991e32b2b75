"""What a field may hold: choices, ranges, and the check of every field of a configuration by itself."""

import dataclasses
import enum
import inspect
import math
import re
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

_PACKAGE = __name__.partition(".")[0]
_ENTRY = re.compile(r"[\w-]+")


class Choice(enum.StrEnum):
    """A field that holds one of a few words.

    Each member is equal to its text, so ``"step"`` may be written for ``Schedule.STEP``. Names are the texts in capital
    letters, as the command line parses names.
    """

    def __repr__(self) -> str:
        return repr(self.value)


class _Range(NamedTuple):
    least: float
    most: float
    below: float


def ranged(default: Any, *, least: float = 0, most: float = math.inf, below: float = math.inf) -> Any:
    """A field for a number from ``least`` to ``most``, or below ``below``.

    Without it, a field of this package must be finite, and at least 1 if it is a whole number (at most 2**31 - 1) or 0
    if it is a real one. A field of a class outside of this package may then hold any number.
    """
    return dataclasses.field(default=default, metadata={"range": _Range(least, most, below)})


def field_faults(node: Any, path: str) -> Iterator[str]:
    """Sentences about single fields that are wrong, over all values: type, choice, range.

    Args:
      node: a configuration, or a part of it.
      path: the beginning of the paths of its fields, such as ``data.``; empty for the whole.
    """
    hints = typing.get_type_hints(type(node))
    for f in dataclasses.fields(node):
        name, value = f"{path}{f.name}", getattr(node, f.name)
        if not has_type(value, hints[f.name]):
            yield _wrong_type(name, value, hints[f.name])
        elif dataclasses.is_dataclass(value):
            yield from field_faults(value, f"{name}.")
        elif isinstance(value, dict):
            yield from _entry_faults(value, name)
        else:
            given = f.metadata.get("range")
            if given or _is_of_this_package(type(node), f.name):
                yield from _range_faults(name, value, hints[f.name], given)


def missing_members(cls: type) -> list[str]:
    """The methods and properties that a base class leaves to its subclasses and ``cls`` does not define.

    The base classes of configurations mark them by `abc.abstractmethod`, but are no `abc.ABC`: an object that lacks a
    member can be created, and the check of a configuration names its field.
    """
    return [name for name in dir(cls) if getattr(getattr(cls, name, None), "__isabstractmethod__", False)]


def _entry_faults(entries: dict[str, Any], name: str) -> Iterator[str]:
    """Faults of the objects in a dictionary, and of their names, which are parts of paths and of names in the log."""
    for key, entry in entries.items():
        if dataclasses.is_dataclass(entry):
            if not _ENTRY.fullmatch(str(key)):
                yield f"{name} holds an entry called {key!r}: use letters, digits, _ and - only."
            yield from field_faults(entry, f"{name}.{key}.")


def _is_of_this_package(cls: type, name: str) -> bool:
    """Whether a class of this package declares the field, even if a subclass elsewhere declares it again."""
    return any(
        name in inspect.get_annotations(one) for one in cls.__mro__ if one.__module__.partition(".")[0] == _PACKAGE
    )


def own_faults(node: Any, path: str) -> Iterator[str]:
    """Sentences of the ``faults(path)`` of every part of a configuration that has one, outer parts first.

    A part whose class lacks members, such as a base class, is a fault too. ``faults`` may rely on fields that are right
    by themselves (`field_faults`).
    """
    if missing := missing_members(type(node)):
        yield (
            f"{path.rstrip('.')} has the class {type(node).__name__}, which does not define {', '.join(missing)}: use "
            "a subclass that does."
        )
    if callable(check := getattr(node, "faults", None)):
        yield from check(path)
    values = node if isinstance(node, dict) else {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    for name, value in values.items():
        if dataclasses.is_dataclass(value) or isinstance(value, dict):
            yield from own_faults(value, f"{path}{name}.")


def _range_faults(name: str, value: Any, hint: Any, given: _Range | None) -> Iterator[str]:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int | float) and float in alternatives(hint):
        least, most, below = given or _Range(0, math.inf, math.inf)
        if not least <= value < math.inf or value > most or value >= below:
            yield f"{name}={value} is out of range: it must be {_described(least, most, below)}."
    elif isinstance(value, int):
        least, most, below = given or _Range(1, math.inf, math.inf)
        below = min(below, 2**31)
        if not least <= value < below or value > most:
            yield f"{name}={value} is out of range: it must be {_described(least, most, below)}."
    elif hint == tuple[float, float, float]:
        if not all(map(math.isfinite, value)):
            yield f"{name}={value} must hold three finite numbers."
    elif hint == tuple[int, ...] and min(value, default=1) < 1:
        yield f"{name}={value} holds a number that is too small: each must be at least 1."


def _described(least: float, most: float, below: float) -> str:
    if most < math.inf:
        return f"between {least:g} and {most:g}"
    if below < math.inf:
        return f"at least {least:g} and below {'2**31' if below == 2**31 else f'{below:g}'}"
    return f"a finite number, not below {least:g}"


def alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a type as annotations write it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(has_type(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(has_type(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(has_type, value, arguments))
    if origin is list:
        return isinstance(value, list) and all(has_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and has_type(entry, arguments[1]) for key, entry in value.items()
        )
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(value, str) and value in list(hint)
    return isinstance(value, origin or hint)


def _wrong_type(name: str, value: Any, hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, enum.Enum) and isinstance(value, str):
        return f"{name}={value!r} is not known: it must be one of {', '.join(repr(one.value) for one in hint)}."
    if typing.get_origin(hint) is dict and isinstance(value, dict):
        cls = typing.get_args(hint)[1]
        wrong = [key for key, entry in value.items() if not (isinstance(key, str) and has_type(entry, cls))]
        must = type_in_words(cls)
        return f"{name} holds {wrong[0]!r}: {value[wrong[0]]!r}, which has the wrong type: it must be {must}."
    return f"{name}={value!r} has the wrong type: it must be {type_in_words(hint)}."


def type_in_words(hint: Any) -> str:
    """What a field of a type can hold, as the end of "it must be"."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "None"}
    if hint in words:
        return words[hint]
    if len(alternatives(hint)) > 1:
        return " or ".join(map(type_in_words, alternatives(hint)))
    if typing.get_origin(hint) in (tuple, list):
        return f"values in brackets, such as {_example(hint)}"
    if typing.get_origin(hint) is dict:
        return f"a dictionary whose values are {type_in_words(typing.get_args(hint)[1])}"
    return f"of class {hint.__name__}" if isinstance(hint, type) else str(hint)


def _example(hint: Any) -> Any:
    """A value of a type."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        return [_example(inner[0])] * 2
    if origin is tuple and inner:
        return tuple(map(_example, (inner[0], inner[0]) if inner[-1] is Ellipsis else inner))
    return {int: 64, float: 0.5, bool: True}.get(hint, "name")
