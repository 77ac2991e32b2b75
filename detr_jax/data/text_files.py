"""Read text files of other programs, with their byte order marks, encodings and foreign paths."""

import codecs
import re
from pathlib import Path, PurePosixPath

from detr_jax.files import LARGEST_LIST, LARGEST_TEXT, read_bytes

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DRIVE = re.compile(r"^[A-Za-z]:(?=[\\/])")


def decode_text(content: bytes) -> str:
    """Decodes the content of a text file as UTF-8, or as its byte order mark says.

    Bytes that are not UTF-8 become surrogates, which Python's file functions convert back to the same bytes. A list of
    file names therefore works in any encoding.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    return content.decode("utf-8", errors="surrogateescape")


def read_any_text(path: str | Path, limit: int = LARGEST_TEXT) -> str:
    """The content of a regular text file of at most ``limit`` bytes, decoded by `decode_text`.

    Raises:
      OSError: the file cannot be read.
    """
    return decode_text(read_bytes(path, limit))


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without surrounding spaces. Blank lines are dropped.

    Raises:
      OSError: the file cannot be read.
    """
    return [line.strip() for line in read_any_text(path, LARGEST_LIST).splitlines() if line.strip()]


def posix_path(text: str) -> str:
    """A path with forward slashes and without a drive of Windows such as ``C:``."""
    return _DRIVE.sub("", text).replace("\\", "/")


def shortened(text: str) -> list[str]:
    """A path and its ends, from the longest to the last component: ``/a/b/c``, ``a/b/c``, ``b/c``, ``c``."""
    parts = [part for part in PurePosixPath(posix_path(text)).parts if part not in ("/", "..", ".")]
    return [text, *("/".join(parts[start:]) for start in range(len(parts)))]
