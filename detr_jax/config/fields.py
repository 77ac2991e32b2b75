"""What a field may hold: choices, ranges, and the check of every field of a configuration by itself."""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple


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

    Without it, a whole number must be at least 1, and a real one at least 0. Every number must be finite, and a whole
    one below 2**31.
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
        if not _has_type(value, hints[f.name]):
            yield _wrong_type(name, value, hints[f.name])
        elif dataclasses.is_dataclass(value):
            yield from field_faults(value, f"{name}.")
        elif isinstance(value, dict):
            for key, entry in value.items():
                if dataclasses.is_dataclass(entry):
                    yield from field_faults(entry, f"{name}.{key}.")
        else:
            yield from _range_faults(name, value, hints[f.name], f.metadata.get("range"))


def own_faults(node: Any, path: str) -> Iterator[str]:
    """Sentences of the ``faults(path)`` of every part of a configuration that has one, outer parts first.

    ``faults`` may rely on fields that are right by themselves (`field_faults`).
    """
    if callable(check := getattr(node, "faults", None)):
        yield from check(path)
    values = node if isinstance(node, dict) else {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    for name, value in values.items():
        if dataclasses.is_dataclass(value) or isinstance(value, dict):
            yield from own_faults(value, f"{path}{name}.")


def _range_faults(name: str, value: Any, hint: Any, given: _Range | None) -> Iterator[str]:
    if isinstance(value, bool):
        return
    if _is_number(hint, float):
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


def _is_number(hint: Any, kind: type) -> bool:
    return hint is kind or (
        typing.get_origin(hint) in (typing.Union, types.UnionType) and kind in typing.get_args(hint)
    )


def _has_type(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_has_type(value, argument) for argument in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_has_type(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_has_type, value, arguments))
    if origin is dict:
        return isinstance(value, dict) and all(
            isinstance(key, str) and _has_type(entry, arguments[1]) for key, entry in value.items()
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
        wrong = [key for key, entry in value.items() if not (isinstance(key, str) and _has_type(entry, cls))]
        return f"{name} holds {wrong[0]!r}: {value[wrong[0]]!r}, which has the wrong type: it must be a {cls.__name__}."
    return f"{name}={value!r} has the wrong type: it must be {_type_name(hint)}."


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
