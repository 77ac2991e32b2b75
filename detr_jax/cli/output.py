"""What commands write: files that must be possible before the work begins, and the end of a command."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from detr_jax.wording import counted as counted

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""


def check_writable(path: Path, option: str) -> None:
    """Ends the command where a file cannot be written, before it has worked for it.

    Raises:
      click.ClickException: there is no folder for it, or it may not be written.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise click.ClickException(f"{option}={path} cannot be written: there is no folder {folder}.")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        reason = "it is a folder" if path.is_dir() else "no permission"
        raise click.ClickException(f"{option}={path} cannot be written ({reason}): give another file.")


def write_text(path: Path, text: str) -> None:
    """Writes a file.

    Raises:
      click.ClickException: it cannot be written.
    """
    try:
        path.write_text(text)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written ({error.strerror}).") from None


def fail(message: object, code: int = 1) -> NoReturn:
    """Ends the process with a sentence."""
    print(message, file=sys.stderr)
    sys.exit(code)
