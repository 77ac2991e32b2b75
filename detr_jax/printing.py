"""Print text that holds names from files. Names must not move the cursor, clear the screen or reorder the line.

Everything that the package prints goes through `printable`, at the place where it is printed.
"""

import re
import sys

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]"
)
"""Control characters except tab and line feed, those that reorder text, and halves of characters."""

_LONGEST = 500_000


def printable(text: object) -> str:
    r"""The text with control characters as escapes such as ``\x1b``, and with at most 500,000 characters.

    Bytes of file names that are not UTF-8 become escapes such as ``\xff`` too.
    """
    shown = _UNPRINTABLE.sub(_escape, str(text))
    if len(shown) > _LONGEST:
        return f"{shown[:_LONGEST]} ... ({len(shown) - _LONGEST:,} more characters)"
    return shown


def say(*lines: object, err: bool = False, end: str = "\n") -> None:
    """Prints lines, each with its control characters as escapes. A line feed inside of a line is an escape too.

    Args:
      lines: one line each. Without any, a blank line is printed.
      err: print to stderr instead of stdout.
      end: what follows the last line.
    """
    text = "\n".join(printable(line).replace("\n", "\\n") for line in lines)
    print(text, end=end, file=sys.stderr if err else sys.stdout, flush=True)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # Python's form of a byte that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
