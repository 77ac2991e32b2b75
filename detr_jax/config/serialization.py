"""A configuration as JSON, as it is in the ``config.json`` of a run and in every checkpoint."""

import json
import typing
from typing import Any

from detr_jax.config.checks import check_fields
from detr_jax.config.error import ConfigError, DamagedConfigError
from detr_jax.config.json_values import from_values, read_value, to_values
from detr_jax.config.paths import unknown_field
from detr_jax.config.renamed import take_renamed, with_old_defaults
from detr_jax.config.run import Config
from detr_jax.json_files import JsonError, parse_object


def to_json(config: Any) -> str:
    """Write the configuration, or a part of it, as indented JSON.

    Raises:
      ConfigError: a class has a field called "kind", or a value that JSON does not have.
    """
    return json.dumps(to_values(config), indent=2)


def from_json(text: str) -> Config:
    """Read what `to_json` wrote. Fields that the text lacks take their defaults, and a dictionary is read as a whole.

    A class of ``detr_jax.config`` is imported if the text names it. A class of another module is used only if that
    module is imported already, so that reading a checkpoint never runs foreign code.

    Raises:
      DamagedConfigError: the text is not a JSON object.
      ConfigError: the text holds a field that does not exist or a value that is not allowed, or names a class that is
        not there.
    """
    try:
        values = parse_object(text)
    except JsonError as error:
        raise DamagedConfigError(f"The configuration is not JSON that can be read ({error}).") from None
    values, renamed = take_renamed(with_old_defaults(values))
    config = from_values(values)
    for path, value in renamed:
        _assign(config, path, value)
    check_fields(config)
    return config


def _assign(config: Config, path: str, value: Any) -> None:
    """Set the field of a path to what JSON has under an earlier name of it."""
    if sentence := unknown_field(path, config):
        raise ConfigError(f"The configuration sets {path} under an earlier name. {sentence}")
    *parents, name = path.split(".")
    node: Any = config
    for parent in parents:
        node = node[parent] if isinstance(node, dict) else getattr(node, parent)
    if isinstance(node, dict):
        node[name] = read_value(value, node[name], Any, f"{path}.")
    else:
        hint = typing.get_type_hints(type(node))[name]
        setattr(node, name, read_value(value, getattr(node, name), hint, f"{path}."))
