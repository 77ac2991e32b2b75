"""Choice of a font that has the characters of a text: Pillow's own font, or the first suitable font of the system.

Pillow's font has little more than ASCII. Names with other characters are drawn with a font of the system or of
matplotlib. A name that no font can show is drawn as the number of its class, such as ``#3``, so that different classes
never look the same.
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
"""Words in the names of font files that are used only if no plain font has the characters."""
_LONGEST = 200  # characters; drawing takes time that grows with the square of the length
_PROBE_SIZE = 16  # pixels; which characters a font has does not depend on it
_NO_CHARACTERS = ("\uffff", "\U0010ffff")  # no font has these, so they show its picture for a missing character


def legible(text: str, otherwise: str) -> str:
    """The text on one line if a font can show it, or else ``otherwise`` and the characters that Pillow's font has.

    Of a text of more than 200 characters, only the beginning is shown.
    """
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    text = "".join(character for character in text if unicodedata.category(character) != "Cc")
    if text and font_file(text) is not None:
        return text
    left = "".join(character for character in text if character.isascii() or _has("", character))
    return " ".join([otherwise, *left.split()])


def class_caption(label: int, categories: dict[int, str]) -> str:
    """The name of a class for a picture. An empty name, or a name that no font can show, becomes ``#3`` or similar."""
    return legible(categories.get(label, str(label)), f"#{label}")


def font_for(text: str, size: float) -> Font:
    """A font of this size in pixels that has all characters of a text; Pillow's own if none has."""
    return _opened(font_file(text) or "", size)


@functools.lru_cache(4096)
def font_file(text: str) -> str | None:
    """The file of a font that has all characters of a text.

    The choice depends only on the text and the installed fonts.

    Returns:
      The path; empty for Pillow's own font; None if no font has all characters.
    """
    needed = sorted({character for character in text if not _is_invisible(character)})
    if all(character.isascii() for character in needed):
        return ""
    for file in ("", *_font_files()):
        try:
            if all(_has(file, character) for character in needed):
                return file
        except (OSError, ValueError):  # a damaged file, or a bitmap font of another size
            continue
    return None


def font_folders() -> list[Path]:
    """The usual font folders of Linux, macOS and Windows, and last the folder of the fonts in matplotlib."""
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
    """The font files of all folders. Plain fonts come first; otherwise the order is by folder and name."""
    found: list[str] = []
    for folder in font_folders():
        files = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
        found += sorted(file for file in files if file.lower().endswith(_SUFFIXES))
    return tuple(sorted(found, key=lambda file: any(style in os.path.basename(file).lower() for style in _STYLES)))


@functools.lru_cache(4096)
def _opened(file: str, size: float) -> Font:
    return ImageFont.truetype(file, size) if file else ImageFont.load_default(size)


def _has(file: str, character: str) -> bool:
    """Whether a font has a glyph for a character."""
    if _is_invisible(character):
        return True
    font, instead = _probe(file)
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow was built without FreeType
        return character.isascii()
    drawn = _pixels(font, character)
    return instead is not None and any(drawn[1]) and drawn != instead


@functools.cache
def _probe(file: str) -> tuple[Font, tuple[tuple[int, int], bytes] | None]:
    """A font in one size without shaping, and the picture that it draws for a missing character.

    The picture is None for "last resort" fonts, which draw another picture for each block of characters.
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
