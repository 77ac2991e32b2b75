"""The classes of a data set, with the number of their objects."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.data.source import Source


class ClassRow(NamedTuple):
    """A class of a data set."""

    label: int
    name: str
    objects: int
    """How many there are to train on; crowds are not among them."""


def class_table(source: Source) -> list[ClassRow]:
    """The classes of a data set by label, those without objects included."""
    if isinstance(source, AnnotatedDataset):
        counts = Counter(source.all_objects()[1].labels.tolist())
    else:
        counts = Counter(label for index in range(len(source)) for label in source.objects(index).labels.tolist())
    return [ClassRow(label, name, counts[label]) for label, name in sorted(source.categories.items())]


def format_classes(names: Mapping[int, str], counts: Mapping[int, int] | None = None) -> str:
    """Labels, class names and, where given, numbers of objects in columns, one class a line, for a terminal."""
    width = max(map(len, names.values()), default=0)
    lines = [
        f"{label:>5}  {name:<{width}}" + (f"  {counts.get(label, 0):>9}" if counts is not None else "")
        for label, name in sorted(names.items())
    ]
    return "\n".join(line.rstrip() for line in lines)
