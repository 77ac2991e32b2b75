"""Checks that all processes of a run have the same configuration, the same data and the same workdir."""

import zlib
from pathlib import Path

import jax
import numpy as np

from detr_jax.config import Config, ConfigError, to_json
from detr_jax.data import DataError
from detr_jax.distributed import gathered, is_main, wait_for_all
from detr_jax.training.resolve import Resolved


def check_same_config(config: Config) -> None:
    """Checks that all processes have the same configuration.

    Raises:
      ConfigError: a process has another one.
    """
    if other := _differing_process(to_json(config).encode()):
        raise ConfigError(
            f"Process {other} has a different configuration from process 0: start all processes with the same "
            "configuration and flags."
        )


def check_same_data(resolved: Resolved) -> None:
    """Checks that all processes found the same images, from which each process plans all batches.

    Raises:
      DataError: a process found other images.
    """
    content = repr(resolved.plan.buckets).encode()
    for source in (resolved.train_source, resolved.val_source):
        content += np.array(source.image_ids).tobytes() + source.sizes.tobytes() + str(source.max_objects).encode()
    if other := _differing_process(content):
        raise DataError(f"Process {other} found other images than process 0: give all hosts the same data.")


def create_shared_workdir(workdir: Path) -> None:
    """Creates the workdir, and checks that all processes see the same folder.

    Raises:
      ConfigError: the folder cannot be created, or a process sees another folder.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a fault that `check_workdir` could not foresee
        raise ConfigError(f"--workdir={workdir} cannot be created ({error.strerror}): choose another folder.") from None
    if jax.process_count() == 1:
        return
    token = workdir / ".processes"
    if is_main():
        token.touch()
    wait_for_all("the token was written")
    sees = gathered(token.exists())
    if is_main():
        token.unlink(missing_ok=True)
    if not sees.all():
        raise ConfigError(
            f"--workdir={workdir} is not the same folder for process {int(np.argmin(sees))} as for process 0: give one "
            "on a file system that all hosts share."
        )


def _differing_process(content: bytes) -> int | None:
    """The first process whose content differs from the content of process 0; None if all have the same."""
    checksums = gathered(zlib.crc32(content))
    return next(iter(np.flatnonzero(checksums != checksums[0]).tolist()), None)
