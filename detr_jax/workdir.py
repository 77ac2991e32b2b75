"""Readers of the files in a run's workdir that several parts use: ``config.json`` and ``metrics.jsonl``."""

import json
from pathlib import Path
from typing import Any

from detr_jax.config import Config, ConfigError, DamagedConfigError, from_json

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"


def read_run_config(workdir: Path) -> Config | None:
    """The configuration of a run. None if the workdir has no ``config.json``.

    Raises:
      DamagedConfigError: the file is damaged.
      ConfigError: the file cannot be used, for example because a module with its classes is not imported.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        return from_json(path.read_text())
    except (DamagedConfigError, UnicodeDecodeError) as error:
        raise DamagedConfigError(f"{path} is damaged: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be used: {error}") from None


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, one dictionary with ``step`` per line. Empty if there is no such file.

    A line that a crash has cut off is ignored.
    """
    path = workdir / METRICS_FILE
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines
