"""Paths of fields, such as ``data.sources.yolo.file``, and the comparison of two configurations by path.

Paths follow the values: a field may hold any subclass of its declared class, and a dictionary holds named entries.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from typing import Any

from detr_jax.config.renamed import current_path
from detr_jax.config.run import Config


def unknown_field(path: str, config: Any = None) -> str | None:
    """Say what is wrong with a path such as ``training.stepz`` that names no field; None if it names one.

    Args:
      path: names separated by dots; entries of a dictionary are named as fields are.
      config: the configuration whose values are followed; by default the default one.
    """
    node: Any = Config() if config is None else config
    for depth, name in enumerate(path.split(".")):
        names = list(children(node))
        if name not in names:
            if (now := current_path(path)) != path:
                return f"There is no configuration field {path}: it is {now} now."
            parent = ".".join(path.split(".")[:depth])
            close = difflib.get_close_matches(name, names, n=1)
            there = f"{parent} {'has no entries' if isinstance(node, dict) else 'is a value'}"
            if names:
                there = f"{parent or 'the configuration'} has {', '.join(names)}"
            hint = f"did you mean {'.'.join(filter(None, (parent, close[0])))}?" if close else f"{there}."
            return f"There is no configuration field {path}: {hint}"
        node = children(node)[name]
    return None


def children(node: Any) -> dict[str, Any]:
    """Fields of a dataclass or entries of a dictionary by name; empty for a plain value."""
    if dataclasses.is_dataclass(node):
        return {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    return node if isinstance(node, dict) else {}


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """The fields in which two configurations differ, as ``{"optimizer.learning_rate": (old, new)}``.

    An object whose class differs, and an entry that only one of them has (None in the other), is one difference.
    """
    found: dict[str, tuple[Any, Any]] = {}
    before, after = children(old), children(new)
    for name in _in_both_orders(before, after):
        one, other = before.get(name), after.get(name)
        if type(one) is type(other) and (dataclasses.is_dataclass(one) or isinstance(one, dict)):
            found |= differences(one, other, f"{path}{name}.")
        elif one != other:
            found[f"{path}{name}"] = (one, other)
    return found


def _in_both_orders(before: Iterable[str], after: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys([*before, *after])
