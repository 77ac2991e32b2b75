"""``detr-jax train``."""

import traceback
from pathlib import Path

import click

from detr_jax.cli.configuration import read_config
from detr_jax.cli.output import fail
from detr_jax.config import Config, ConfigError


def run_training(config: Config, workdir: str | Path) -> None:
    """Trains, and ends the process with a sentence and an exit code where that comes to no good end.

    Where there are other processes, what ends one of them ends all.
    """
    from absl import logging

    from detr_jax.checkpoints import CheckpointError
    from detr_jax.data import DataError
    from detr_jax.training.error import TrainingError
    from detr_jax.training.loop import train
    from detr_jax.training.signals import Interrupted
    from detr_jax.weights import WeightsError

    logging.set_verbosity(logging.ERROR)
    try:
        train(config, workdir)
    except Interrupted as stopped:
        fail(stopped, 128 + stopped.signal_number)
    except (ConfigError, DataError, CheckpointError, TrainingError, WeightsError) as error:
        _end_others(error)
        fail(error)
    except BaseException as error:
        _end_others(error, traceback.format_exc())
        raise


def _end_others(error: BaseException, shown: str = "") -> None:
    """Where there are other processes, ends them and this one."""
    import jax

    if jax.distributed.is_initialized():
        from detr_jax.distributed import end_all

        end_all(f"{type(error).__name__}: {error}" if shown else str(error), 1, shown)


@click.command(
    "train",
    short_help="Train a model, or continue a run.",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
)
@click.option("--config", "file", metavar="FILE", help="Configuration file, such as configs/shapes.py.")
@click.option("--workdir", type=click.Path(path_type=Path), help="Folder of the run; default: runs/NAME_OF_CONFIG.")
@click.option("--distributed", is_flag=True, help="One of several processes, which jax finds: on TPU, Slurm, MPI.")
@click.option("--coordinator", metavar="HOST:PORT", help="Process 0, where jax does not find it.")
@click.option(
    "--num-processes", "--num_processes", type=int, metavar="N", help="With --coordinator: how many there are."
)
@click.option("--process-id", "--process_id", type=int, metavar="I", help="With --coordinator: this one, from 0 on.")
@click.option(
    "--connect-timeout",
    "--connect_timeout",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long processes wait for one another at the start.",
)
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--config.FIELD=VALUE]...")
def train_command(
    file: str | None,
    workdir: Path | None,
    distributed: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    connect_timeout: int,
    changes: tuple[str, ...],
) -> None:
    """Train a model, or go on where an earlier run in the same workdir stopped: the program train.py.

    The workdir gets checkpoints, metrics.jsonl and pictures. Ctrl-C saves before it stops. On several hosts give each
    the same command with --distributed (docs/scaling.md) and a workdir that all of them see.

    \b
    Examples:
      detr-jax train --config configs/shapes.py
      detr-jax train --config configs/coco.py --config.data.root=FOLDER --config.training.batch_size=16
      detr-jax train --config configs/coco.py --coordinator=HOST:8476 --num-processes=2 --process-id=0
    """
    if file is None:
        raise click.ClickException("Give a configuration: --config configs/shapes.py")
    config = read_config(file, changes)
    if distributed or coordinator is not None or num_processes is not None or process_id is not None:
        from detr_jax.distributed import DistributedError, start

        try:
            start(coordinator, num_processes, process_id, timeout=connect_timeout)
        except DistributedError as error:
            raise click.ClickException(str(error)) from None
    run_training(config, workdir or Path("runs") / Path(file.partition(":")[0]).stem)
