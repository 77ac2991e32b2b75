"""How a folder is recognised as a data set: what its readers say about it."""

from pathlib import Path
from typing import NamedTuple

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation")
TEST = ("test", "testing")
WHOLE = "all"
"""The split of a data set that is not split."""


class Found(NamedTuple):
    """A data set that a folder holds, as its files' names tell."""

    dataset: str
    """"yolo" or "voc"."""
    path: Path
    """What the reader is given: a file or folder."""
    splits: dict[str, int]
    """Number of images of each split, by its name: those of training first, then of validation, then others. A data set
    that is not split has `WHOLE` only, or the only list it has."""
    line: str
    """How it was understood, in one English line."""


def split_group(name: str) -> tuple[str, ...]:
    """The names that mean the same split as a name does."""
    return next((group for group in (TRAIN, VALIDATION, TEST) if name.lower() in group), (name,))


def in_order(splits: dict[str, int]) -> dict[str, int]:
    """Splits in the order of `Found`."""
    order = (*TRAIN, *VALIDATION)
    rank = {name: order.index(name.lower()) if name.lower() in order else len(order) for name in splits}
    return dict(sorted(splits.items(), key=lambda item: (rank[item[0]], item[0])))


def images(number: int) -> str:
    """A number of images in words."""
    return "1 image" if number == 1 else f"{number:,} images"
