"""Open the files that a user or a stranger gives: only regular files, and only up to a stated size.

Every file that this package did not write itself in the same run is opened here. A named pipe or a device would block
or never end, and a file of any size would fill the memory.
"""

import gzip
import io
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

LARGEST_TEXT = 2**26
"""Bytes, 64 MiB: a file of labels or class names, an XML file, or a JSON file of a run."""
LARGEST_YAML = 2**22
"""Bytes, 4 MiB: a YAML file. Its parser reads about 0.2 MiB per second."""
LARGEST_LIST = 2**30
"""Bytes, 1 GiB: a list of images or a log, with one line per image or step."""
LARGEST_ANNOTATIONS = 2**33
"""Bytes, 8 GiB: the annotations of a whole data set. Those of COCO have 0.5 GB."""
LARGEST_IMAGE = 2**30
"""Bytes, 1 GiB: an image file. The limit of Pillow, 89 million pixels, has 12 bytes per pixel then."""

ALWAYS_UNPACKED = 2**28
"""Bytes, 256 MiB: a compressed file may always unpack to this size."""
MOST_EXPANSION = 100
"""Beyond `ALWAYS_UNPACKED`, a file may unpack to this multiple of its size. JSON and arrays reach about 20."""

_PIECE = 2**24


class UnusableFileError(OSError):
    """A file is not a regular file, or is too large. The message is the reason, without the name of the file."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.strerror = reason


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file for reading. It never blocks. Symbolic links are followed.

    Raises:
      UnusableFileError: it is a folder, a named pipe, a socket or a device, or the name cannot be a file name.
      OSError: it does not exist or cannot be opened.
    """
    try:
        _check_regular(os.stat(path).st_mode)  # before it is opened: to open a device can have an effect
        descriptor = os.open(path, os.O_RDONLY | _flag("O_NONBLOCK") | _flag("O_CLOEXEC") | _flag("O_BINARY"))
    except ValueError:
        raise UnusableFileError("its name has a null character") from None
    file = open(descriptor, "rb")  # noqa: SIM115 (the caller closes it)
    try:
        _check_regular(os.fstat(descriptor).st_mode)  # it may have been replaced in between
    except OSError:
        file.close()
        raise
    return file


def check_regular(path: str | os.PathLike[str]) -> int:
    """Checks that a path is a regular file, and returns its size in bytes; raises the errors of `open_regular`."""
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size


def read_bytes(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
      UnusableFileError: it has more bytes; or as for `open_regular`.
      OSError: as for `open_regular`.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise UnusableFileError(f"it has {_text(size)}, and the limit is {_text(limit)}")
        content = file.read(size)
        return content + _rest(file, limit - len(content), f"the limit of {_text(limit)}")


def read_text(path: str | os.PathLike[str], limit: int = LARGEST_TEXT) -> str:
    """The content of a regular text file in UTF-8, with or without a byte order mark.

    Raises:
      UnusableFileError: it is not text in UTF-8; or as for `read_bytes`.
      OSError: as for `open_regular`.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableFileError(f"it is not text in UTF-8 at byte {error.start:,}: save it as UTF-8") from None


def read_unzipped(path: str | os.PathLike[str], limit: int) -> bytes:
    """The content of a regular file, which may be compressed with gzip, of at most ``limit`` bytes in either form.

    Raises:
      UnusableFileError: it unpacks to more than `largest_unpacked`; or as for `read_bytes`.
      OSError: as for `open_regular`, or its compression is damaged.
      EOFError: it is cut off.
    """
    content = read_bytes(path, limit)
    if not content.startswith(b"\x1f\x8b"):
        return content
    most = min(limit, largest_unpacked(len(content)))
    with gzip.open(io.BytesIO(content)) as file:
        return _rest(file, most, f"{_text(most)} when it is unpacked")


def largest_unpacked(size: int) -> int:
    """The most bytes that a compressed file of ``size`` bytes may unpack to. More is taken for an attack."""
    return max(ALWAYS_UNPACKED, MOST_EXPANSION * size)


def check_unpacked(size: int, unpacked: Iterable[int], what: str) -> None:
    """Checks the sizes that a file declares, before anything is allocated for them.

    Args:
      size: bytes of the file.
      unpacked: bytes of each part, as the file declares them.
      what: the parts in the message, such as "its arrays".

    Raises:
      UnusableFileError: their sum is above `largest_unpacked`.
    """
    total, most = sum(unpacked), largest_unpacked(size)
    if total > most:
        raise UnusableFileError(
            f"{what} need {_text(total)}, and {_text(size)} on the disk may stand for {_text(most)} at most"
        )


def folder_size(folder: Path) -> int:
    """The bytes of the regular files in a folder and its sub-folders."""
    sizes = (os.lstat(os.path.join(place, name)) for place, _, names in os.walk(folder) for name in names)
    return sum(one.st_size for one in sizes if stat.S_ISREG(one.st_mode))


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise UnusableFileError(f"it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a regular file")


def _rest(file: BinaryIO | gzip.GzipFile, limit: int, what: str) -> bytes:
    """The rest of a file, of at most ``limit`` bytes."""
    pieces: list[bytes] = []
    while piece := file.read(min(_PIECE, limit + 1)):
        limit -= len(piece)
        if limit < 0:
            raise UnusableFileError(f"it has more than {what}")
        pieces.append(piece)
    return b"".join(pieces)


def _flag(name: str) -> int:
    """A flag of `os.open`, which other systems may lack."""
    return getattr(os, name, 0)


def _text(size: int) -> str:
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
