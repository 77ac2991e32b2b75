"""Trains DETR: ``python train.py --config configs/shapes.py [--workdir DIR] [--config.field=value ...]``."""

import sys
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from detr_jax.cli.run import run_training
from detr_jax.config import Config, unknown_field

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, such as configs/shapes.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/NAME_OF_CONFIG.")


def _fail(message: object) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(1)


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; what is wrong with them ends in one sentence."""
    for argument in argv[1:]:
        if argument.startswith("--config.") and (sentence := unknown_field(argument[9:].partition("=")[0])):
            _fail(sentence)
    try:
        rest = flags.FLAGS(argv)
        filename = config_flags.get_config_filename(flags.FLAGS["config"]) if flags.FLAGS["config"].present else None
    except flags.Error as error:
        _fail(error)
    except Exception as error:  # a configuration file is anybody's code
        _fail(f"The configuration could not be read ({type(error).__name__}: {error}).")
    if len(rest) > 1:
        _fail(f"{rest[1]!r} is not understood: every option begins with --, as --config.training.steps=100.")
    if filename is None:
        _fail("Give a configuration: python train.py --config configs/shapes.py")
    if not Path(filename).is_file():
        _fail(f"The configuration file {filename} does not exist: give one like configs/shapes.py.")
    if not isinstance(_CONFIG.value, Config):
        _fail(f"get_config() in {filename} returned {_CONFIG.value!r}, which must be a detr_jax.config.Config.")
    return rest


def main(_: list[str]) -> None:
    """Runs a training."""
    workdir = _WORKDIR.value or Path("runs") / Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    run_training(_CONFIG.value, workdir)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
