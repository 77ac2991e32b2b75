"""`AppendedFile`: a file to which records are appended whole or not at all, also if the disk is full."""

import os
from contextlib import suppress
from pathlib import Path

from detr_jax.workdir import writing


class AppendedFile:
    """A file of records, such as the lines of a log. Every record is handed to the system at once."""

    def __init__(self, path: Path):
        """Opens the file, and creates it if it does not exist.

        Raises:
          WorkdirError: it cannot be opened.
        """
        self._path = path
        self._waiting: list[bytes] = []
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)

    def append(self, record: bytes) -> None:
        """Appends a record, after those that could not be written before.

        Raises:
          WorkdirError: it cannot be written. It is kept for the next call.
        """
        self._waiting.append(record)
        self.flush()

    def flush(self) -> None:
        """Writes the records that could not be written before.

        Raises:
          WorkdirError: they cannot be written.
        """
        with writing(self._path):
            size = os.fstat(self._file.fileno()).st_size
            while self._waiting:
                left = self._waiting[0]
                try:
                    while left:  # a full disk may take a part of it first
                        left = left[self._file.write(left) :]
                except OSError:
                    with suppress(OSError):
                        self._file.truncate(size)
                    raise
                size += len(self._waiting.pop(0))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
