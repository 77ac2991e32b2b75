"""Which framework a checkpoint is of, and behind which prefix its model is."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from detr_jax.weights.detectron2 import DETECTRON2
from detr_jax.weights.facebook import FACEBOOK
from detr_jax.weights.files import TensorFile, WeightsError
from detr_jax.weights.huggingface import HUGGINGFACE
from detr_jax.weights.layout import Layout, Sorted, sort_tensors, without_wrappers
from detr_jax.weights.mmdetection import MMDETECTION
from detr_jax.weights.torchvision import TORCHVISION

LAYOUTS = (FACEBOOK, DETECTRON2, HUGGINGFACE, MMDETECTION, TORCHVISION)

_RELATIVES = {  # names that only a relative of DETR has
    "sampling_offsets": "Deformable DETR or one of its heirs",
    "ca_qcontent_proj": "Conditional DETR",
    "denoising_generator": "DINO or DN-DETR",
}
_AVERAGE = re.compile(r"(?<![a-z])ema(?![a-z])|averaged")
_SAMPLE = 120  # names that are enough to tell layouts and prefixes apart
_DEPTH = 3  # parts of a name that can be a prefix
_TWIN = 0.9  # share of a model's tensors that makes another prefix a second copy of it


class Candidate(NamedTuple):
    """A way to read a file's names."""

    known: int
    """Names of the sample that have a rule."""
    layout: Layout
    prefix: str


def recognise(file: TensorFile) -> Sorted:
    """A file's tensors, sorted by the layout and prefix under which rules know the most of them.

    Of two copies of a model, the moving average is taken; the other one goes to `Sorted.ignored`.

    Raises:
      WeightsError: a known relative of DETR, or nothing that is known here.
    """
    for name in file.tensors:
        for mark, relative in _RELATIVES.items():
            if mark in name:
                raise WeightsError(f"{file.source} is a checkpoint of {relative} (it has {name}), not of DETR.")
    candidates = sorted(_candidates(list(file.tensors)), key=lambda x: (-x.known, len(x.prefix)))
    best = candidates[0]
    twins = [x for x in candidates if x.layout is best.layout and _are_twins(x, best)]
    chosen = next((x for x in twins if _AVERAGE.search(x.prefix)), best)
    found = sort_tensors(file.tensors, chosen.layout, chosen.prefix)
    others = tuple(x.prefix for x in twins if x.prefix != chosen.prefix)
    for name in found.outside:
        if others and without_wrappers(name).startswith(others):
            found.ignored.append(name)
        else:
            found.unexpected.append(f"{name} {list(file.tensors[name].shape)}")
    if 2 * len(found.claims) * (1 + len(others)) <= len(file.tensors):
        examples = ", ".join(list(file.tensors)[:3])
        raise WeightsError(
            f"{file.source} is no checkpoint of a kind that is known here ({', '.join(x.kind for x in LAYOUTS)}): "
            f"it has {len(file.tensors)} tensors such as {examples}."
        )
    return found


def _are_twins(one: Candidate, best: Candidate) -> bool:
    if one.prefix == best.prefix:
        return True
    apart = not one.prefix.startswith(best.prefix) and not best.prefix.startswith(one.prefix)
    return apart and one.known >= _TWIN * best.known


def _candidates(names: list[str]) -> Iterator[Candidate]:
    step = max(1, len(names) // _SAMPLE)
    sample = dict.fromkeys(names[::step], _NOTHING)
    for prefix in _prefixes(list(sample)):
        for layout in LAYOUTS:
            yield Candidate(len(sort_tensors(sample, layout, prefix).claims), layout, prefix)


_NOTHING = np.empty(0)


def _prefixes(names: list[str]) -> Iterator[str]:
    """Beginnings that at least a third of the names share, none included."""
    shared: Counter[str] = Counter()
    for name in map(without_wrappers, names):
        parts = name.split(".")[:-1]
        shared.update(".".join(parts[: depth + 1]) + "." for depth in range(min(_DEPTH, len(parts))))
    yield ""
    yield from (prefix for prefix, count in shared.items() if 3 * count >= len(names))
