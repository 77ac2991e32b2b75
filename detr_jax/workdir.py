"""The files in a run's workdir that several parts use: ``config.json``, ``metrics.jsonl``, and the lock.

Every file is written under another name, flushed to the disk, and renamed. So a file is complete at any time.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from detr_jax.config import Config, ConfigError, DamagedConfigError, from_json
from detr_jax.files import LARGEST_LIST, UnusableFileError, read_bytes, read_text
from detr_jax.json_files import JsonError, parse_json

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
LOCK_FILE = "lock"


class WorkdirError(OSError):
    """A file of a workdir cannot be written; the message names it."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises a `WorkdirError` with a sentence for an error of the file system."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise WorkdirError(
            f"{path} cannot be written ({reason}): free some space there, or allow writing to it."
        ) from error


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file or link under a temporary name and renames it, so that ``path`` is complete at any time.

    A file that a kill left under the temporary name is overwritten by the next call.

    Raises:
      WorkdirError: it cannot be written. The file is as it was before.
    """
    temporary = path.with_name(f".new-{path.name}")  # the suffix says what is written
    with writing(path):
        try:
            temporary.unlink(missing_ok=True)
            write(temporary)
            if temporary.is_file() and not temporary.is_symlink():
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def replace_text(path: Path, text: str) -> None:
    """Writes a text file with `replace_file`."""
    replace_file(path, lambda temporary: temporary.write_text(text))


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keeps other trainings out of a workdir, until the context ends or the process is gone for any reason.

    Raises:
      ConfigError: another training uses the workdir. The message has its host and process id.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = workdir / LOCK_FILE
    with writing(path):
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ConfigError(
                f"{workdir} is used by another training ({file.read().strip() or 'which has just started'}): wait for "
                "it, stop it, or choose another --workdir."
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        with writing(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield  # the lock ends with the file, also if the process is killed


def read_run_config(workdir: Path) -> Config | None:
    """The configuration of a run. None if the workdir has no ``config.json``.

    Raises:
      DamagedConfigError: the file is damaged.
      ConfigError: the file cannot be used, for example because a module with its classes is not imported.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        return None
    try:
        return from_json(read_text(path))
    except (DamagedConfigError, UnusableFileError) as error:
        raise DamagedConfigError(f"{path} is damaged: {str(error).rstrip('.')}.") from None
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be used: {error}") from None


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, one dictionary with ``step`` per line. Empty if there is no such file.

    A line that a crash has cut off, so that it is not JSON, is ignored.

    Raises:
      ConfigError: the file cannot be read, or a line holds something else than a step and numbers.
    """
    path = workdir / METRICS_FILE
    if not path.exists():
        return []
    try:
        content = read_bytes(path, LARGEST_LIST).decode(errors="replace")
    except UnusableFileError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    lines = []
    for number, text in enumerate(content.split("\n"), start=1):
        try:
            line = parse_json(text)
        except JsonError:
            continue
        if not _is_metrics(line):
            raise ConfigError(
                f"{path} is damaged: line {number} must be a JSON object with a step and numbers. Delete the line."
            )
        lines.append(line)
    return lines


def _is_metrics(line: Any) -> bool:
    """Whether a line of ``metrics.jsonl`` has a step, and nothing but numbers and null."""
    if not isinstance(line, dict) or type(line.get("step")) is not int or not 0 <= line["step"] < 2**63:
        return False
    return all(
        value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)
        for value in line.values()
    )
