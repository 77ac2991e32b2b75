"""How the folder of a data set is laid out: its kind, its splits, and where each is."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from detr_jax.data.source import DataError

ALL = "all"
"""The name of the only split of a data set that has no splits."""

_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Layout:
    """A data set of one kind.

    Attributes:
      kind: "coco", "yolo" or "voc".
      splits: where each split is, in terms of its reader, by the split's name in the folder; `ALL` for the only one.
      sentence: how the folder was understood, in one line.
    """

    kind: str
    splits: Mapping[str, Any]
    sentence: str

    def find(self, split: str, given: str) -> str | None:
        """The name of a split in the folder; None if the folder lacks it.

        Args:
          split: "train" or "val", what it is for.
          given: its name, as ``data.train_split`` or ``data.val_split`` gives it; empty: what the folder calls it.

        Raises:
          DataError: the folder has no split of the name that was given, or several that could be meant.
        """
        return find_split(self.splits, split, given, self.sentence)


def find_split(names: Iterable[str], split: str, given: str, where: str) -> str | None:
    """The one of ``names`` that is meant; see `Layout.find`."""
    names = list(names)
    if given in names and given:
        return given
    wanted = canonical(given) if given else split
    found = [name for name in names if canonical(name) == wanted] if wanted else []
    if len(found) == 1:
        return found[0]
    exact = [name for name in found if name.lower() in _NAMES.get(wanted or "", ())]
    if len(exact) == 1:
        return exact[0]
    field = f"data.{split}_split"
    if found:
        raise DataError(f"{where} has several splits for {field}: set it to one of {', '.join(sorted(found))}.")
    if given:
        there = ", ".join(sorted(names))
        raise DataError(f"{where} has no split {given!r}: set {field} to one that there is ({there}).")
    if split == "train" and len(names) == 1 and canonical(names[0]) is None:
        return names[0]  # a set without splits
    return None


def canonical(name: str) -> str | None:
    """ "train", "val" or "test", if that is what the name of a split, file or folder means."""
    words = re.split(r"[^a-z]+", name.lower())
    for split, spellings in _NAMES.items():
        if any(word in spellings for word in words):
            return split
    return None


def without_split(layout: Layout) -> DataError:
    """The error of a data set that has no split to evaluate on."""
    others = sorted(name for name in layout.splits if canonical(name) == "test")
    hint = f"set data.val_split={others[0]}, or " if others else "set "
    return DataError(
        f"{layout.sentence}, and has no split to evaluate on: {hint}data.val_share=0.2 to keep a fifth of the training "
        "images for that."
    )
