"""Parts of messages that depend on values: numbers with their nouns, articles, names of images."""

from collections.abc import Sequence
from typing import Any


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun, such as 1 image or 2 images. ``plural`` is for nouns such as classes."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def brief(number: int) -> str:
    """A whole number in at most 21 characters. Numbers of 20 digits and more become a power of two, such as 2**664."""
    if abs(number) < 10**19:
        return str(number)
    return f"about {'-' if number < 0 else ''}2**{number.bit_length() - 1}"


def with_article(noun: str) -> str:
    """A noun with its indefinite article before it: an image, a category. Its first letter decides."""
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"


def image_name(source: Any, index: int) -> str:
    """The name of an image of a `detr_jax.data.Source` in pictures and reports: its file, or else its id."""
    file = source.file_name(index) if hasattr(source, "file_name") else ""
    return str(file) if file else f"image {source.image_ids[index]}"


def one_line(beginning: str, items: Sequence[str], ending: str, width: int) -> str:
    """A line of at most ``width`` characters with as many of the items as fit, separated by commas."""
    shown = ", ".join(items)
    kept = len(items)
    while kept and len(beginning) + len(shown) + len(ending) > width:
        kept -= 1
        shown = ", ".join([*items[:kept], "..."])
    return f"{beginning}{shown}{ending}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
