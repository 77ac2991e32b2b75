"""``detr-jax train``: train a model, or resume a run. ``train.py`` is the same program."""

import sys
import traceback
from pathlib import Path

import click

from detr_jax.cli.configuration import config_option, read_config
from detr_jax.cli.output import fail
from detr_jax.config import Config, ConfigError
from detr_jax.leaving import LeaveOnSignal, leave
from detr_jax.presets import PRESETS
from detr_jax.printing import printable
from detr_jax.signal_thread import SignalThread

_WIDTH = max(map(len, PRESETS))
_PRESETS = "\b\nPresets:\n" + "\n".join(f"  {name:<{_WIDTH}}  {text}" for name, text in PRESETS.items())


def run_training(config: Config, workdir: str | Path, *, strict: bool = False) -> None:
    """Train. If the training fails, print a sentence and end the process with an exit code.

    In a distributed run, an error in one process ends all processes.
    """
    from absl import logging

    from detr_jax.checkpoints import CheckpointError
    from detr_jax.data import DataError
    from detr_jax.distributed import is_distributed
    from detr_jax.training.error import TrainingError
    from detr_jax.training.loop import train
    from detr_jax.training.signals import Interrupted
    from detr_jax.training.watchdog import HANG_CODE, HangError
    from detr_jax.weights import WeightsError
    from detr_jax.workdir import WorkdirError

    logging.set_verbosity(logging.ERROR)
    try:
        train(config, workdir, strict=strict)
    except Interrupted as stopped:
        if is_distributed():  # only a normal exit disconnects the processes
            fail(stopped, 128 + stopped.signal_number)
        print(printable(stopped), file=sys.stderr)
        leave(128 + stopped.signal_number)
    except HangError as error:
        _end_others(error, code=HANG_CODE)
        print(printable(error), file=sys.stderr)
        leave(HANG_CODE)  # a normal exit would wait for what is stuck
    except (ConfigError, DataError, CheckpointError, TrainingError, WeightsError, WorkdirError) as error:
        _end_others(error)
        fail(error)
    except BaseException as error:
        _end_others(error, traceback.format_exc())
        raise


def _end_others(error: BaseException, shown: str = "", code: int = 1) -> None:
    """In a distributed run, end all processes, this one included."""
    from detr_jax.distributed import end_all, is_distributed

    if is_distributed():
        end_all(f"{type(error).__name__}: {error}" if shown else str(error), code, shown)


@click.command(
    "train",
    short_help="Train a model, or continue a run.",
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    epilog=_PRESETS,
)
@config_option
@click.option("--workdir", type=click.Path(path_type=Path), help="Folder of the run. Default: runs/NAME.")
@click.option(
    "--distributed", is_flag=True, help="Join the other processes of the run, which JAX finds on TPU, Slurm and MPI."
)
@click.option("--coordinator", metavar="HOST:PORT", help="Address of process 0, if JAX does not find it.")
@click.option(
    "--num-processes", "--num_processes", type=int, metavar="N", help="With --coordinator: number of processes."
)
@click.option(
    "--process-id", "--process_id", type=int, metavar="I", help="With --coordinator: number of this process, from 0."
)
@click.option(
    "--connect-timeout",
    "--connect_timeout",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="Longest time to wait for the other processes at the start.",
)
@click.option(
    "--strict", is_flag=True, help="Stop if the newest checkpoint is damaged, instead of resuming from an earlier one."
)
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--config.FIELD=VALUE]...")
def train_command(
    config_name: str | None,
    workdir: Path | None,
    distributed: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    connect_timeout: int,
    strict: bool,
    changes: tuple[str, ...],
) -> None:
    """Train a model. If the workdir holds a checkpoint, the run is resumed from it.

    The run writes checkpoints, metrics.jsonl and pictures into the workdir. After Ctrl-C it saves a checkpoint and
    stops. On several hosts, give the same command with --distributed (docs/scaling.md) on each of them, and a workdir
    that all of them see.

    \b
    Examples:
      detr-jax train --config shapes
      detr-jax train --config coco --config.data.root=FOLDER --config.training.batch_size=16
      detr-jax train --config mine.py --coordinator=HOST:8476 --num-processes=2 --process-id=0
    """
    handler = LeaveOnSignal("Stopped before the first step. Nothing is lost: the same command starts again.")
    with SignalThread(handler, handler):
        if config_name is None:
            raise click.ClickException(
                f"Give a configuration, such as --config shapes: a preset ({', '.join(PRESETS)}) or a Python file."
            )
        config = read_config(config_name, changes)
        if distributed or coordinator is not None or num_processes is not None or process_id is not None:
            from detr_jax.distributed import DistributedError, start

            try:
                start(coordinator, num_processes, process_id, timeout=connect_timeout)
            except DistributedError as error:
                raise click.ClickException(str(error)) from None
        run_training(config, workdir or Path("runs") / Path(config_name.partition(":")[0]).stem, strict=strict)
