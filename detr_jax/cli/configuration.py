"""Read configurations from presets, files and ``--config.FIELD=VALUE`` flags, for ``train.py`` and ``detr-jax``."""

import contextlib
import copy
import dataclasses
import difflib
import enum
import importlib
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from detr_jax.config import Config, current_path, unknown_field
from detr_jax.config.fields import alternatives, type_in_words
from detr_jax.config.paths import children
from detr_jax.presets import PRESETS
from detr_jax.printing import say

config_option = click.option(
    "--config", "config_name", metavar="NAME|FILE", help="A preset, or a Python file with get_config()."
)
"""The option of a command that takes a configuration, for `read_config`."""


class ConfigurableCommand(click.Command):
    """A command that accepts ``--config.FIELD=VALUE`` at any place and passes them to its function as ``changes``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Takes ``--config.FIELD=VALUE`` out of the arguments; click parses the others."""
        changes, others, remaining = [], [], list(args)
        while remaining:
            argument = remaining.pop(0)
            if argument == "--":
                others += [argument, *remaining]
                break
            if not argument.startswith("--config."):
                others.append(argument)
                continue
            changes.append(argument)
            if "=" not in argument and remaining and not remaining[0].startswith("--"):
                changes.append(remaining.pop(0))
        rest = super().parse_args(ctx, others)
        ctx.params["changes"] = tuple(changes)
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Adds the fields to the usage line of ``--help``."""
        return [*super().collect_usage_pieces(ctx), "[--config.FIELD=VALUE]..."]


def check_fields_named(
    changes: Sequence[str], allowed: Sequence[str], reason: str, *, config: Config | None = None
) -> None:
    """Refuse changes of fields that are not allowed.

    Args:
      changes: the ``changes`` of a `ConfigurableCommand`.
      allowed: fields such as ``data.val_short_side``, or beginnings of paths such as ``data.``.
      reason: why other fields cannot be changed, as the end of the error's sentence.
      config: the configuration that is changed, whose fields count as known. By default the default configuration.

    Raises:
      click.ClickException: a change is not allowed.
    """
    for change in changes:
        field = current_path(change.removeprefix("--config.").partition("=")[0])
        if change.startswith("--config.") and not unknown_field(field, config) and not field.startswith(tuple(allowed)):
            raise click.ClickException(f"{change} cannot be changed: {reason}")


def read_config(
    name: str | Path | None, changes: Sequence[str], *, base: Config | None = None, **data: str | None
) -> Config:
    """Read the configuration of a preset or file, and change single fields of it.

    Args:
      name: a preset, or a Python file with ``get_config()``. Text after a colon is the argument of
        ``get_config``. None: start from ``base``.
      changes: each ``--config.field=value``, or ``--config.field`` followed by ``value``.
      base: the configuration to start from if ``name`` is None. By default the default configuration.
      data: values of fields of ``data``. None leaves a field as it is. They are set after ``changes``.

    Raises:
      click.ClickException: the preset or file gives no configuration, or a change is not understood.
    """
    from absl import flags
    from ml_collections import config_flags

    changes = [*changes, *(f"--config.data.{field}={value}" for field, value in data.items() if value is not None)]
    config = _named(str(name)) if name is not None else Config() if base is None else copy.deepcopy(base)
    arguments = ["detr-jax", *_checked(changes, config)]
    own_flags = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dataclass("config", config, flag_values=own_flags, sys_argv=arguments)
        own_flags(arguments)
    except flags.Error as error:
        raise click.ClickException(_sentence(str(error), config)) from None
    for argument in arguments:
        if argument.startswith("--config."):
            _use_none(own_flags.config, argument.removeprefix("--config.").partition("=")[0])
    return own_flags.config


def _use_none(config: Config, path: str) -> None:
    """Set a field to None if it can be None and the parser of tuples made ``(None,)`` of the word "None"."""
    node, name = _owner(config, path)
    if isinstance(node, dict) or getattr(node, name) != (None,):
        return
    if types.NoneType in typing.get_args(typing.get_type_hints(type(node))[name]):
        setattr(node, name, None)


def _owner(config: Config, path: str) -> tuple[typing.Any, str]:
    """The object or dictionary that holds the field at a path, and the name of the field in it."""
    *parents, name = path.split(".")
    node: typing.Any = config
    for parent in parents:
        node = node[parent] if isinstance(node, dict) else getattr(node, parent)
    return node, name


def _checked(changes: Sequence[str], config: Config) -> list[str]:
    """The changes with current names. A warning is printed for each earlier name.

    Raises:
      click.ClickException: a change names no field, or a whole section.
    """
    found, value_follows = [], False
    for change in changes:
        if value_follows and not change.startswith("--"):
            value_follows = False
            found.append(change)
            continue
        if not change.startswith("--config."):
            raise click.ClickException(f"{change!r} is not understood: see --help.")
        name, equals, value = change.removeprefix("--config.").partition("=")
        if (now := current_path(name)) != name:
            say(f"Warning: --config.{name} is called --config.{now} now.", err=True)
        if sentence := unknown_field(now, config) or _section_fault(now, config):
            raise click.ClickException(sentence)
        found.append(f"--config.{now}{equals}{value}")
        value_follows = not equals
    return found


def _section_fault(path: str, config: Config) -> str | None:
    """Say that a path names a section, and a field of it; None for a value, or for a section that can be None."""
    node, name = _owner(config, path)
    section = children(node)[name]
    if not (dataclasses.is_dataclass(section) or isinstance(section, dict)):
        return None
    if not isinstance(node, dict) and types.NoneType in alternatives(typing.get_type_hints(type(node))[name]):
        return None
    field, value = path, section
    while names := list(children(value)):
        field, value = f"{field}.{names[-1]}", children(value)[names[-1]]
    if dataclasses.is_dataclass(value) or isinstance(value, dict):
        return f"{path} is a section: change it in a configuration file."
    return f"{path} is a section: set one of its fields, such as --config.{field}=VALUE."


def _named(name: str) -> Config:
    """The configuration of a preset or of a Python file. Text after a colon is an argument for its ``get_config``."""
    source, _, argument = name.partition(":")
    if source in PRESETS:
        content = vars(importlib.import_module(f"detr_jax.presets.{source}"))
    elif Path(source).is_file():
        content = run_as_module(source)
    else:
        raise click.ClickException(_no_such_configuration(source))
    if "get_config" not in content:
        raise click.ClickException(f"{source} has no function get_config(): write one that returns a Config.")
    with _faults_of(source):
        config = content["get_config"](*filter(None, [argument]))
    if not isinstance(config, Config):
        raise click.ClickException(
            f"get_config() in {source} returned an object of class {type(config).__name__}: it must return a "
            "detr_jax.config.Config."
        )
    return config


def _no_such_configuration(source: str) -> str:
    close = difflib.get_close_matches(source, PRESETS, n=1)
    hint = f"did you mean {close[0]}?" if close else "give a preset or an existing Python file."
    return f"--config={source} is neither a preset ({', '.join(PRESETS)}) nor an existing file: {hint}"


def run_as_module(path: str) -> dict[str, typing.Any]:
    """Run a Python file as the module of its name, so that a configuration can hold classes that the file defines.

    Worker processes import the module to unpickle these classes, and `detr_jax.config.from_json` finds them there.

    Returns:
      The names that the file defines, with their values.

    Raises:
      click.ClickException: the file cannot be run.
    """
    name = Path(path).stem
    there = sys.modules.get(name)
    if there is not None and not hasattr(there, "_detr_jax_config_file"):
        name = f"{name}_config"  # another module has that name
    module = types.ModuleType(name)
    module.__dict__.update(__file__=str(Path(path).resolve()), _detr_jax_config_file=True)
    if (folder := str(Path(path).resolve().parent)) not in sys.path:
        sys.path.append(folder)
    sys.modules[name] = module
    try:
        with _faults_of(path):
            exec(compile(Path(path).read_bytes(), path, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module.__dict__


@contextlib.contextmanager
def _faults_of(path: str) -> Iterator[None]:
    """Turn any error in the code of a file into a sentence with the line."""
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:  # the user's code can raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = path if line is None else f"{path}, line {line}"
        raise click.ClickException(f"{where} cannot be run: {type(error).__name__}: {error}") from None


def _sentence(problem: str, config: Config) -> str:
    """A sentence about absl's problem with a flag. For the value of a field it says what the field can hold."""
    found = re.match(r"flag --config\.([\w.-]+)=(.*?): ", problem, re.DOTALL)
    if found is None:
        return problem
    node, name = _owner(config, found[1])
    value = node[name] if isinstance(node, dict) else getattr(node, name)
    kind = type(value) if isinstance(node, dict) else typing.get_type_hints(type(node))[name]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        known = ", ".join(repr(one.value) for one in kind)
        return f"{found[1]}={found[2]!r} is not known: it must be one of {known}."
    return f"{found[1]}={found[2]!r} must be {type_in_words(kind)}."
