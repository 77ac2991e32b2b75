"""How the folder of a data set is laid out: its kind, its splits, and where each is."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from detr_jax.data.source import DataError

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation", "validate", "dev")
TEST = ("test", "testing")
WHOLE = "all"
"""The split of a data set that is not split."""

_GROUPS = {"train": TRAIN, "val": VALIDATION, "test": TEST}


@dataclass(frozen=True)
class Layout:
    """A data set of one kind, as the names of its files show it."""

    kind: str
    """"coco", "yolo" or "voc"."""
    splits: Mapping[str, Any]
    """Where each split is, in terms of its reader, by the split's name in the folder. A data set that is not split has
    `WHOLE` only, or the only list it has."""
    sentence: str
    """How the folder was understood, in one line without full stop."""

    def find(self, split: str, given: str) -> str | None:
        """The name of a split in the folder; None if the folder lacks it.

        Args:
          split: "train" or "val", what it is for.
          given: its name, as ``data.train_split`` or ``data.val_split`` gives it; empty: what the folder calls it.

        Raises:
          DataError: the folder has no split of the name that was given, or several that could be meant.
        """
        names = list(self.splits)
        if given in names and given:
            return given
        wanted = meaning(given) if given else split
        found = [name for name in names if wanted and meaning(name) == wanted]
        exact = [name for name in found if name.lower() in _GROUPS[wanted]] if wanted else []
        if len(found) == 1 or len(exact) == 1:
            return (exact or found)[0]
        field, there = f"data.{split}_split", ", ".join(sorted(found or names))
        if found:
            raise DataError(f"{self.sentence}, and has several splits for {field}: set it to one of {there}.")
        if given:
            raise DataError(f"{self.sentence}, and has no split {given!r}: set {field} to one that there is ({there}).")
        if split == "train" and len(names) == 1 and meaning(names[0]) is None:
            return names[0]  # a set without splits
        return None

    def lacks_validation(self) -> DataError:
        """The error of a data set that has no split to evaluate on."""
        others = sorted(name for name in self.splits if meaning(name) == "test")
        hint = f"set --config.data.val_split={others[0]}, or " if others else "set "
        return DataError(
            f"{self.sentence}, and has no split to evaluate on: {hint}--config.data.val_share=0.2 to keep a fifth of "
            "the training images for that."
        )


def meaning(name: str) -> str | None:
    """ "train", "val" or "test", if that is what the name of a split, file or folder says."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in _GROUPS.items() if any(word in names for word in words)), None)


def split_group(name: str) -> tuple[str, ...]:
    """The names that mean the same split as a name does."""
    return next((group for group in _GROUPS.values() if name.lower() in group), (name,))


def in_order(names: Iterable[str]) -> list[str]:
    """Names of splits: those of training first, then of validation, then others."""
    order = list(_GROUPS)
    return sorted(names, key=lambda name: (order.index(split) if (split := meaning(name)) else len(order), name))
