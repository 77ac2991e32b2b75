"""Text files that other programs wrote: byte order marks, encodings, paths of other systems."""

import codecs
import re
from pathlib import Path, PurePosixPath

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DRIVE = re.compile(r"^[A-Za-z]:(?=[\\/])")


def decode_text(content: bytes) -> str:
    """The text of a file: UTF-8, or what its byte order mark says.

    Other bytes become the surrogates that Python's file functions turn into the same bytes again, so that a list of
    file names finds its files in any encoding.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    return content.decode("utf-8", errors="surrogateescape")


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without the spaces around them.

    Raises:
      OSError: the file cannot be read.
    """
    return [line.strip() for line in decode_text(path.read_bytes()).splitlines() if line.strip()]


def posix_path(text: str) -> str:
    """A path with the separators of this system: backslashes and a drive, such as ``C:``, are those of Windows."""
    return _DRIVE.sub("", text).replace("\\", "/")


def shortened(text: str) -> list[str]:
    """A path and its ends, from the longest to the last name: ``/a/b/c``, ``a/b/c``, ``b/c``, ``c``."""
    parts = [part for part in PurePosixPath(posix_path(text)).parts if part not in ("/", "..", ".")]
    return [text, *("/".join(parts[start:]) for start in range(len(parts)))]
