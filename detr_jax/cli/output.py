"""Output files of commands, and errors that end a command."""

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from detr_jax.printing import printable
from detr_jax.wording import counted as counted

STOPPED = 130
"""Exit code after Ctrl-C, the same as in shells."""


def check_writable(path: Path, option: str) -> None:
    """Checks that an output file can be written. Commands call this before they start their work.

    Raises:
      click.ClickException: its folder does not exist, or there is no permission.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise click.ClickException(f"{option}={path} cannot be written: there is no folder {folder}.")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        reason = "it is a folder" if path.is_dir() else "no permission"
        raise click.ClickException(f"{option}={path} cannot be written ({reason}): give another file.")


def write_text(path: Path, text: str) -> None:
    """Writes a text file.

    Raises:
      click.ClickException: the file cannot be written.
    """
    try:
        path.write_text(text)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written ({error.strerror}).") from None


def free_name(stem: str, suffix: str, taken: set[str]) -> str:
    """``stem`` with the suffix, and with a number if the name is taken. The name is added to the taken ones.

    Args:
      stem: name without suffix.
      suffix: such as ".png".
      taken: names in lower case, because some file systems ignore case.
    """
    name, number = f"{stem}{suffix}", 1
    while name.lower() in taken:
        number += 1
        name = f"{stem}-{number}{suffix}"
    taken.add(name.lower())
    return name


def fail(message: object, code: int = 1) -> NoReturn:
    """Prints a message and ends the process."""
    print(printable(message), file=sys.stderr)
    sys.exit(code)
