"""Names of classes in JSON: ``module:Class``, for the classes that are not the default ones at their place."""

import dataclasses
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from detr_jax.config.error import ConfigError

_OWN = __name__.rpartition(".")[0]
"""The package that holds all configuration classes of detr_jax. Only its modules are imported for a name in JSON."""


def kind_of(cls: type) -> str:
    """The name of a class. A class of the script that runs is named as if its file had been imported."""
    module = _main_name() if cls.__module__ == "__main__" else cls.__module__
    return f"{module}:{cls.__qualname__}"


def class_named(kind: Any, place: str) -> type:
    """The dataclass that JSON names. Only modules of this package's configuration are imported for it.

    Args:
      kind: the text of `kind_of`.
      place: the path of the object, for messages.

    Raises:
      ConfigError: the text is not such a name, or the class is not there.
    """
    module, colon, qualname = kind.partition(":") if isinstance(kind, str) else ("", "", "")
    if not (module and colon and qualname):
        raise ConfigError(f'{place} has kind={kind!r}: it must name a class as "module:Class".')
    if module == _OWN or module.startswith(f"{_OWN}."):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{place} has kind={kind!r}, and {error}: it is of another version.") from None
    running = sys.modules["__main__"] if module in ("__main__", _main_name()) else None
    for there in filter(None, (running, sys.modules.get(module))):
        if (found := _dataclass_in(there, qualname)) is not None:
            return found
    raise ConfigError(f"{place} has kind={kind!r}, {_reason(module, qualname)}")


def _main_name() -> str:
    """The name under which other programs import what Python runs; ``__main__`` in a notebook or a console."""
    main = sys.modules["__main__"]
    if (spec := getattr(main, "__spec__", None)) is not None:  # python -m
        return str(spec.name)
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def _dataclass_in(module: ModuleType, qualname: str) -> type | None:
    """A dataclass of a module. Names are looked up without ``getattr``, which a module can answer with an import."""
    found: Any = module
    for name in qualname.split("."):
        found = getattr(found, "__dict__", {}).get(name)
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None


def _reason(module: str, qualname: str) -> str:
    """Why there is no such class, and what to do, as the end of a sentence."""
    if "<locals>" in qualname:
        return "a class that a function defines, where no reader finds it: define it at the top of a module."
    if module == "__main__":
        return (
            f"a class of a notebook or a console: define {qualname} here before. For detr-jax, define it in a file, "
            "import it from there in the notebook, and give the file as detr-jax --import FILE."
        )
    if module not in sys.modules:
        return (
            f"and the module {module} is not imported: import {module} before, or give detr-jax its file, as in "
            f"detr-jax --import {module}.py. Reading a configuration never runs code by itself."
        )
    return f"and {module} has no dataclass {qualname}."
