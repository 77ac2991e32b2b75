"""A table of the classes of a data set with their numbers of objects."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.data.own_sources import all_usable
from detr_jax.data.source import Source


class ClassRow(NamedTuple):
    """A class of a data set."""

    label: int
    name: str
    objects: int
    """The number of objects to train on. Crowds do not count."""


def class_table(source: Source) -> list[ClassRow]:
    """The classes of a data set, sorted by label, including classes without objects."""
    if isinstance(source, AnnotatedDataset):
        counts = Counter(source.all_objects()[1].labels.tolist())
    else:
        counts = Counter(label for objects in all_usable(source) for label in objects.labels.tolist())
    return [ClassRow(label, name, counts[label]) for label, name in sorted(source.categories.items())]


def format_classes(names: Mapping[int, str], counts: Mapping[int, int] | None = None) -> str:
    """A text table with one class per line: label, name and, if ``counts`` is given, the number of objects.

    Args:
      names: class name by label.
      counts: number of objects by label.
    """
    width = max(map(len, names.values()), default=0)
    lines = [
        f"{label:>5}  {name:<{width}}" + (f"  {counts.get(label, 0):>9}" if counts is not None else "")
        for label, name in sorted(names.items())
    ]
    return "\n".join(line.rstrip() for line in lines)
