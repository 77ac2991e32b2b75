"""Fonts that have the characters of a text: Pillow's own, or the first one of the system.

Pillow's font has little more than ASCII. Other names are drawn with a font of the system (or matplotlib's). A name that
no font can show is drawn as the number of its class, so that classes never look alike: ``#3``.
"""

import functools
import importlib.util
import os
import sys
import unicodedata
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SUFFIXES = (".otc", ".otf", ".ttc", ".ttf")
_STYLES = ("black", "bold", "condensed", "italic", "light", "math", "medium", "mono", "oblique", "serif", "thin")
"""Words in the names of files that are only taken if no plain font will do."""
_PROBE_SIZE = 16  # pixels; which characters a font has does not depend on it
_NO_CHARACTERS = ("\uffff", "\U0010ffff")  # drawn as what a font draws instead of a character that it lacks


def legible(text: str, otherwise: str) -> str:
    """The text on one line, if a font can show it. If none can, ``otherwise`` and what Pillow's font shows of it."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    text = "".join(character for character in text if unicodedata.category(character) != "Cc")
    if text and font_file(text) is not None:
        return text
    left = "".join(character for character in text if character.isascii() or _has("", character))
    return " ".join([otherwise, *left.split()])


def class_caption(label: int, categories: dict[int, str]) -> str:
    """The name of a class as pictures show it: ``#3`` for a name that is empty or that no font can show."""
    return legible(categories.get(label, str(label)), f"#{label}")


def font_for(text: str, size: float) -> Font:
    """A font of this size in pixels that has all characters of a text; Pillow's own if none has."""
    return _opened(font_file(text) or "", size)


@functools.lru_cache(4096)
def font_file(text: str) -> str | None:
    """The file of a font that has all characters of a text; empty for Pillow's own font, None if there is none.

    Which one it is depends on the fonts that are installed; with the same fonts it is always the same.
    """
    needed = sorted({character for character in text if not _is_invisible(character)})
    if all(character.isascii() for character in needed):
        return ""
    for file in ("", *_font_files()):
        try:
            if all(_has(file, character) for character in needed):
                return file
        except (OSError, ValueError):  # a damaged file, or a font of bitmaps in another size
            continue
    return None


def font_folders() -> list[Path]:
    """Where fonts usually are on Linux, macOS and Windows; matplotlib's, which come with it, are last."""
    data = [*os.environ.get("XDG_DATA_DIRS", "").split(os.pathsep), "/usr/local/share", "/usr/share"]
    home = Path(os.path.expanduser("~"))
    folders = [Path(folder) / "fonts" for folder in dict.fromkeys(filter(None, data))]
    folders += [home / ".local/share/fonts", home / ".fonts", home / "Library/Fonts"]
    if sys.platform == "darwin":
        folders += [Path("/System/Library/Fonts"), Path("/Library/Fonts")]
    if sys.platform == "win32":
        folders += [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
        folders += [home / "AppData/Local/Microsoft/Windows/Fonts"]
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        folders.append(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf")
    return folders


@functools.cache
def _font_files() -> tuple[str, ...]:
    """The font files of all folders, searched once: plain ones first, then by folder and name."""
    found: list[str] = []
    for folder in font_folders():
        files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
        found += sorted(file for file in files if file.lower().endswith(_SUFFIXES))
    return tuple(sorted(found, key=lambda file: any(style in os.path.basename(file).lower() for style in _STYLES)))


@functools.lru_cache(4096)
def _opened(file: str, size: float) -> Font:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def _has(file: str, character: str) -> bool:
    """Whether a font has a glyph of its own for a character."""
    if _is_invisible(character):
        return True
    font, instead = _probe(file)
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow was built without FreeType
        return character.isascii()
    drawn = _pixels(font, character)
    return instead is not None and any(drawn[1]) and drawn != instead


@functools.cache
def _probe(file: str) -> tuple[Font, tuple[tuple[int, int], bytes] | None]:
    """A font of one size without shaping, and what it draws instead of a character that it lacks.

    The latter is None for "last resort" fonts, which have a picture for each block of characters.
    """
    font = _opened(file, _PROBE_SIZE)
    if not isinstance(font, ImageFont.FreeTypeFont):
        return font, None
    plain = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    first, second = (_pixels(plain, character) for character in _NO_CHARACTERS)
    return plain, first if first == second else None


def _pixels(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _is_invisible(character: str) -> bool:
    """Whether a character draws nothing by itself: spaces, joiners, variation selectors."""
    kind = unicodedata.category(character)
    return character.isspace() or kind == "Cf" or 0xFE00 <= ord(character) <= 0xFE0F
