"""Read JSON of unknown origin: damaged, nested deeply, with numbers of any length, or in another encoding."""

import json
import os
from typing import Any

from detr_jax.files import LARGEST_TEXT, read_text

MOST_NESTED = 64
"""Lists and objects inside one another. The files of this package have at most 10."""


class JsonError(ValueError):
    """A text is not JSON that can be used. The message is the reason, without the name of the file."""


def parse_json(text: str | bytes, *, most_nested: int | None = MOST_NESTED) -> Any:
    """The value of a JSON text.

    Args:
      text: the text. Bytes are decoded as UTF-8, UTF-16 or UTF-32.
      most_nested: the most lists and objects inside one another. None: only the limit of Python.

    Raises:
      JsonError: it is not JSON, is nested too deeply, or has a number of more than 4,300 digits.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise JsonError("its lists and objects are nested too deeply") from None
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not text in UTF-8 at byte {error.start:,}: save it as UTF-8") from None
    except ValueError as error:  # also for numbers of too many digits
        raise JsonError(str(error)) from None
    if most_nested is not None:
        _check_nesting(value, most_nested)
    return value


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object of a JSON text.

    Raises:
      JsonError: it is something else; or as for `parse_json`.
    """
    value = parse_json(text)
    if not isinstance(value, dict):
        raise JsonError(f"it must hold a JSON object, and holds {_kind(value)}")
    return value


def read_object(path: str | os.PathLike[str], limit: int = LARGEST_TEXT) -> dict[str, Any]:
    """The object in a JSON file in UTF-8.

    Raises:
      JsonError: as for `parse_object`.
      OSError: the file cannot be read; see `detr_jax.files.read_text`.
    """
    return parse_object(read_text(path, limit))


def _check_nesting(value: Any, most: int) -> None:
    """Raises `JsonError` if lists and objects are nested more than ``most`` times. It does not recurse."""
    level = [value]
    for _ in range(most):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise JsonError("its lists and objects are nested too deeply")


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
