"""Trains DETR: ``python train.py --config configs/shapes.py [--workdir DIR] [--config.field=value ...]``."""

import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, such as configs/shapes.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/NAME_OF_CONFIG.")


def _fail(message: str, code: int = 1) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except KeyError as error:  # what ml_collections raises for a field that does not exist
        _fail(f"There is no such configuration field: {error.args[0]}")
    except (flags.Error, ValueError, SyntaxError, ImportError, OSError) as error:
        _fail(f"{error}")
    raise AssertionError


def main(argv: list[str]) -> None:
    """Runs a training."""
    if len(argv) > 1:
        _fail(f"{argv[1]!r} is not understood: every option begins with --, as --config.training.steps=100.")
    if _CONFIG.value is None:
        _fail("Give a configuration: python train.py --config configs/shapes.py")
    from detr_jax.checkpoints import CheckpointError
    from detr_jax.config import ConfigError
    from detr_jax.data import DataError
    from detr_jax.training.loop import Interrupted, TrainingError, train

    logging.set_verbosity(logging.ERROR)
    filename = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _WORKDIR.value or Path("runs") / Path(filename).stem
    try:
        train(_CONFIG.value, workdir)
    except Interrupted as stopped:
        _fail(str(stopped), 128 + stopped.signal_number)
    except (ConfigError, DataError, CheckpointError, TrainingError) as error:
        _fail(str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
