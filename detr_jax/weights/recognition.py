"""Recognition of a checkpoint's layout and of the prefix that its names share."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from detr_jax.weights.files import TensorFile, WeightsError
from detr_jax.weights.layout import Layout, without_wrappers
from detr_jax.weights.sorting import SortedTensors, described, sort_tensors

_RELATIVES = {  # parts of names that only these relatives of DETR have, the most specific ones first
    "label_enc.": "DINO or DN-DETR",
    "dn_query_generator": "DINO or DN-DETR",
    "denoising_generator": "DINO or DN-DETR",
    "denoising_class_embed": "RT-DETR",
    "refpoint_embed": "DAB-DETR or a model built on it",
    "tgt_embed": "DINO or DAB-Deformable DETR",
    "ca_qcontent_proj": "Conditional DETR",
    "ref_point_head": "Conditional DETR, DAB-DETR or DINO",
    "sampling_offsets": "Deformable DETR or a model built on it",
}
_EMA = re.compile(r"(?<![a-z])ema(?![a-z])|averaged")
_SAMPLE = 120  # number of names that suffices to compare layouts and prefixes
_DEPTH = 3  # most words of a name that can belong to a prefix
_COPY = 0.9  # a prefix with this share of the model's tensors is a second copy of the model


class Candidate(NamedTuple):
    """A layout and a prefix by which the names of a file can be read."""

    known: int
    """Names of the sample that have a rule."""
    layout: Layout
    """The layout whose rules are tried."""
    prefix: str
    """The beginning of the names that is removed before the rules."""


def recognise(file: TensorFile, layouts: Sequence[Layout]) -> SortedTensors:
    """The tensors of a file, sorted by the layout and the prefix that know most of them.

    If the file holds two copies of a model, the EMA is taken. The names of the other copy are ignored.

    Raises:
      WeightsError: the file is a relative of DETR without a layout, or no layout knows more than half of it.
    """
    family = _of_same_family(file, layouts)
    candidates = sorted(_candidates(list(file.tensors), family), key=lambda x: (-x.known, len(x.prefix)))
    best = candidates[0]
    copies = [x for x in candidates if x.layout is best.layout and _are_copies(x, best)]
    chosen = next((x for x in copies if _EMA.search(x.prefix)), best)
    found = sort_tensors(file.tensors, chosen.layout, chosen.prefix)
    others = tuple(x.prefix for x in copies if x.prefix != chosen.prefix)
    for name in found.without_prefix:
        if others and without_wrappers(name).startswith(others):
            found.ignored.append(name)
        else:
            found.unexpected.append(described(name, file.tensors[name]))
    if 2 * len(found.known) * (1 + len(others)) <= len(file.tensors):
        raise _unknown(file, layouts)
    return found


def _of_same_family(file: TensorFile, layouts: Sequence[Layout]) -> list[Layout]:
    """The layouts that fit the file and whose marks are exactly the marks that the file's names hold.

    Raises:
      WeightsError: there is no such layout.
    """
    readable = {mark for layout in layouts for mark in layout.marks}
    examples = {
        mark: name
        for mark in (*_RELATIVES, *readable)
        if (name := next((name for name in file.tensors if mark in name), None))
    }
    if family := [layout for layout in layouts if set(layout.marks) == examples.keys() and layout.fits(file)]:
        return family
    present = [set(layout.marks) for layout in layouts if set(layout.marks) <= examples.keys()]
    for mark, relative in _RELATIVES.items():
        if mark in examples and not any(mark in marks for marks in present):
            raise WeightsError(
                f"{file.source} is a checkpoint of {relative} (it has {examples[mark]}), and no layout for it is known."
            )
    raise _unknown(file, layouts)


def _unknown(file: TensorFile, layouts: Sequence[Layout]) -> WeightsError:
    kinds = ", ".join(dict.fromkeys(layout.kind for layout in layouts))
    examples = ", ".join(list(file.tensors)[:3])
    return WeightsError(
        f"{file.source} is not a checkpoint of a known kind ({kinds}): it has {len(file.tensors)} tensors such as "
        f"{examples}."
    )


def _are_copies(one: Candidate, best: Candidate) -> bool:
    """Whether two prefixes lead to copies of the same model, or are the same prefix."""
    if one.prefix == best.prefix:
        return True
    apart = not one.prefix.startswith(best.prefix) and not best.prefix.startswith(one.prefix)
    return apart and one.known >= _COPY * best.known


def _candidates(names: list[str], layouts: Sequence[Layout]) -> Iterator[Candidate]:
    step = max(1, len(names) // _SAMPLE)
    sample = dict.fromkeys(names[::step], np.empty(0))
    for prefix in _prefixes(list(sample)):
        for layout in layouts:
            yield Candidate(len(sort_tensors(sample, layout, prefix).known), layout, prefix)


def _prefixes(names: list[str]) -> Iterator[str]:
    """The empty prefix, and beginnings that at least a third of the names share."""
    shared: Counter[str] = Counter()
    for name in map(without_wrappers, names):
        words = name.split(".")[:-1]
        shared.update(".".join(words[: depth + 1]) + "." for depth in range(min(_DEPTH, len(words))))
    yield ""
    yield from (prefix for prefix, count in shared.items() if 3 * count >= len(names))
