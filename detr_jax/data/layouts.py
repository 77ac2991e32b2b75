"""`Layout`: the kind of a data set's folder and the location of its splits; and the names of splits."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from detr_jax.data.source import DataError

TRAIN = ("train", "training")
VALIDATION = ("val", "valid", "validation", "validate", "dev")
TEST = ("test", "testing")
WHOLE = "all"
"""The name of the only split of a data set without splits."""

_GROUPS = {"train": TRAIN, "val": VALIDATION, "test": TEST}


@dataclass(frozen=True)
class Layout:
    """The layout of a data set, as the names of its files show it."""

    kind: str
    """"coco", "yolo", "voc" or "labelme"."""
    splits: Mapping[str, Any]
    """The location of each split, by its name in the folder. The type depends on the kind.

    A data set without splits has only `WHOLE`, or the only list that exists.
    """
    sentence: str
    """A sentence, without full stop, that says how the folder was interpreted."""

    def find(self, split: str, given: str) -> str | None:
        """The name of a split in the folder, or None if the folder lacks it.

        Args:
          split: the use of the split, "train" or "val".
          given: the value of ``data.train_split`` or ``data.val_split``. If it is empty, the usual names are tried.

        Raises:
          DataError: the folder has no split of the given name, or several splits match.
        """
        names = list(self.splits)
        if given in names and given:
            return given
        use = meaning(given) if given else split
        found = [name for name in names if use and meaning(name) == use]
        exact = [name for name in found if name.lower() in _GROUPS[use]] if use else []
        if len(found) == 1 or len(exact) == 1:
            return (exact or found)[0]
        field, there = f"data.{split}_split", ", ".join(sorted(found or names))
        if found:
            raise DataError(f"{self.sentence}, and has several splits for {field}: set it to one of {there}.")
        if given:
            raise DataError(f"{self.sentence}, and has no split {given!r}: set {field} to an existing split ({there}).")
        if split == "train" and len(names) == 1 and meaning(names[0]) is None:
            return names[0]  # a data set without splits
        return None

    def lacks_validation(self) -> DataError:
        """The error for a data set without a validation split."""
        others = sorted(name for name in self.splits if meaning(name) == "test")
        hint = f"set --config.data.val_split={others[0]}, or " if others else "set "
        return DataError(
            f"{self.sentence}, and has no split to evaluate on: {hint}--config.data.val_share=0.2 to keep a fifth of "
            "the training images for that."
        )


def meaning(name: str) -> str | None:
    """The use of a split, file or folder by its name: "train", "val", "test", or None if the name does not say it."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, names in _GROUPS.items() if any(word in names for word in words)), None)


def split_group(name: str) -> tuple[str, ...]:
    """All names with the same meaning as the name of a split."""
    return next((group for group in _GROUPS.values() if name.lower() in group), (name,))


def in_order(names: Iterable[str]) -> list[str]:
    """The names of splits in order: training, validation, test, then others."""
    order = list(_GROUPS)
    return sorted(names, key=lambda name: (order.index(split) if (split := meaning(name)) else len(order), name))
