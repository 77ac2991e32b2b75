"""Configurations from the command line, for ``train.py`` and ``detr-jax`` alike."""

import contextlib
import copy
import enum
import re
import sys
import traceback
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from detr_jax.config import Config, current_path, unknown_field


class ConfigurableCommand(click.Command):
    """A command that takes ``--config.FIELD=VALUE`` anywhere, and gives them to its function as ``changes``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
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
        return [*super().collect_usage_pieces(ctx), "[--config.FIELD=VALUE]..."]


def check_fields_named(
    changes: Sequence[str], allowed: Sequence[str], reason: str, *, config: Config | None = None
) -> None:
    """Refuse changes of other fields than the allowed ones.

    Args:
      changes: those of a `ConfigurableCommand`.
      allowed: fields such as ``data.val_short_side``, or beginnings such as ``data.``.
      reason: why the others cannot be changed, as the rest of the sentence.
      config: the configuration that is changed, which says what fields there are; by default the default one.

    Raises:
      click.ClickException: a change is not allowed.
    """
    for change in changes:
        field = current_path(change.removeprefix("--config.").partition("=")[0])
        if change.startswith("--config.") and not unknown_field(field, config) and not field.startswith(tuple(allowed)):
            raise click.ClickException(f"{change} cannot be changed: {reason}")


def read_config(
    file: str | Path | None, changes: Sequence[str], *, base: Config | None = None, **data: str | None
) -> Config:
    """The configuration of a file, or without one ``base`` or else the default, with single fields changed.

    Args:
      file: a Python file with ``get_config()``; behind a colon, an argument for it.
      changes: each ``--config.field=value``, or ``--config.field`` and ``value`` after one another.
      data: values of fields of ``data``, None for those that are not given; they come after ``changes``.

    Raises:
      click.ClickException: the file gives none, or a change is not understood.
    """
    from absl import flags
    from ml_collections import config_flags

    changes = [*changes, *(f"--config.data.{name}={value}" for name, value in data.items() if value is not None)]
    config = _from_file(str(file)) if file is not None else Config() if base is None else copy.deepcopy(base)
    arguments = ["detr-jax", *_checked(changes, config)]
    own_flags = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dataclass("config", config, flag_values=own_flags, sys_argv=arguments)
        own_flags(arguments)
    except flags.Error as error:
        raise click.ClickException(_sentence(str(error), config)) from None
    except config_flags.UnsupportedOperationError:
        raise click.ClickException(
            f"{' '.join(arguments[1:])} changes a section as a whole: change its fields one by one, or in a "
            "configuration file."
        ) from None
    for argument in arguments:
        if argument.startswith("--config."):
            _use_none(own_flags.config, argument.removeprefix("--config.").partition("=")[0])
    return own_flags.config


def _use_none(config: Config, path: str) -> None:
    """Sets a field to None if the parser of tuples made ``(None,)`` of the word and the field can be None."""
    node, name = _owner(config, path)
    if isinstance(node, dict) or getattr(node, name) != (None,):
        return
    if types.NoneType in typing.get_args(typing.get_type_hints(type(node))[name]):
        setattr(node, name, None)


def _owner(config: Config, path: str) -> tuple[typing.Any, str]:
    """The object or dictionary that holds the field of a path, and the name of the field there."""
    *parents, name = path.split(".")
    node: typing.Any = config
    for parent in parents:
        node = node[parent] if isinstance(node, dict) else getattr(node, parent)
    return node, name


def _checked(changes: Sequence[str], config: Config) -> list[str]:
    """The changes with present names instead of earlier ones, of which a warning is printed.

    Raises:
      click.ClickException: a change names no field.
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
            click.echo(f"Warning: --config.{name} is called --config.{now} now.", err=True)
        if sentence := unknown_field(now, config):
            raise click.ClickException(sentence)
        found.append(f"--config.{now}{equals}{value}")
        value_follows = not equals
    return found


def _from_file(file: str) -> Config:
    """The configuration that a Python file gives; behind a colon, an argument for its ``get_config``."""
    path, _, argument = file.partition(":")
    if not Path(path).is_file():
        raise click.ClickException(f"The configuration file {path} does not exist: give one like configs/shapes.py.")
    content = run_as_module(path)
    if "get_config" not in content:
        raise click.ClickException(f"{path} has no function get_config(): write one, as in configs/shapes.py.")
    with _faults_of(path):
        config = content["get_config"](*filter(None, [argument]))
    if not isinstance(config, Config):
        raise click.ClickException(f"get_config() in {path} returned something else than a detr_jax.config.Config.")
    return config


def run_as_module(path: str) -> dict[str, typing.Any]:
    """Run a Python file as the module of its name, so that a configuration can hold classes that the file defines.

    Worker processes import the module to unpickle them, and `detr_jax.config.from_json` finds it among the imported
    ones.

    Returns:
      What the file defines, by name.

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
    """Turns any error of a file's code into a sentence with its line."""
    try:
        yield
    except click.ClickException:
        raise
    except Exception as error:  # it is anybody's code
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = path if line is None else f"{path}, line {line}"
        raise click.ClickException(f"{where} cannot be run: {type(error).__name__}: {error}") from None


def _sentence(problem: str, config: Config) -> str:
    """What absl says of a flag, in terms of the configuration if it is a field's value."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", problem, re.DOTALL)
    if found is None:
        return problem
    node, name = _owner(config, found[1])
    kind = typing.get_type_hints(type(node)).get(name)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        known = ", ".join(repr(one.value) for one in kind)
        return f"{found[1]}={found[2]!r} is not known: it must be one of {known}."
    names: dict[typing.Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
    return f"{found[1]}={found[2]!r} must be {names.get(kind, kind)}."
