"""Configurations from the command line, for ``train.py`` and ``detr-jax`` alike."""

import copy
from collections.abc import Sequence
from pathlib import Path

import click
from absl import flags
from ml_collections import config_flags

from detr_jax.config import Config, unknown_field


def read_config(file: str | Path | None, changes: Sequence[str], *, base: Config | None = None) -> Config:
    """The configuration of a file, or without one ``base`` or else the default, with single fields changed.

    Args:
      file: a Python file with ``get_config()``; behind a colon, an argument for it.
      changes: each ``--config.field=value``, or ``--config.field`` and ``value`` after one another.

    Raises:
      click.ClickException: the file gives none, or a change is not understood.
    """
    value_follows = False
    for change in changes:
        if value_follows and not change.startswith("--"):
            value_follows = False
            continue
        if not change.startswith("--config."):
            raise click.ClickException(f"{change!r} is not understood: see --help.")
        name, equals, _ = change[9:].partition("=")
        if sentence := unknown_field(name):
            raise click.ClickException(sentence)
        value_follows = not equals
    if file is not None and not Path(path := str(file).partition(":")[0]).is_file():
        raise click.ClickException(f"The configuration file {path} does not exist: give one like configs/shapes.py.")
    own_flags = flags.FlagValues()
    arguments = ["detr-jax", *([] if file is None else [f"--config={file}"]), *changes]
    if file is None:
        config = Config() if base is None else copy.deepcopy(base)
        config_flags.DEFINE_config_dataclass("config", config, flag_values=own_flags, sys_argv=arguments)
    else:
        config_flags.DEFINE_config_file("config", flag_values=own_flags, sys_argv=arguments)
    try:
        own_flags(arguments)
    except flags.Error as error:
        raise click.ClickException(str(error)) from None
    except Exception as error:  # a configuration file is anybody's code
        raise click.ClickException(f"{file} could not be read ({type(error).__name__}: {error}).") from None
    if not isinstance(own_flags.config, Config):
        raise click.ClickException(f"get_config() in {file} returned something else than a detr_jax.config.Config.")
    return own_flags.config
