"""Words of messages that depend on values: numbers with their nouns, articles, names of images."""

from typing import Any


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: 1 image, 2 images, 2 classes (whose plural is given)."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def with_article(noun: str) -> str:
    """A noun, spelt as it sounds at its beginning, behind its indefinite article: an image, a category."""
    return f"{'an' if noun[:1].lower() in tuple('aeiou') else 'a'} {noun}"


def image_name(source: Any, index: int) -> str:
    """How pictures and reports call an image of a `detr_jax.data.Source`: by its file if it has one, or else its id."""
    file = source.file_name(index) if hasattr(source, "file_name") else ""
    return str(file) if file else f"image {source.image_ids[index]}"
