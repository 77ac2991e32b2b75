"""The charts of ``metrics.jsonl``: loss, loss terms, diagnostics, learning rates and validations of a run.

Every loss term, diagnostic and number of a validation in the log is drawn, whatever its name. Tables in this file only
give better titles to well-known names, and draw some of them together.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detr_jax.log_names import last_layer_terms, split_term
from detr_jax.visualization import charts

Picture = tuple[Path, str]
"""A file and its caption."""

_TERMS = {
    "loss_ce": "classes",
    "loss_bbox": "L1 of boxes",
    "loss_giou": "GIoU of boxes",
    "loss_mask": "focal loss of masks",
    "loss_dice": "dice loss of masks",
}
_DIAGNOSTICS = {
    "cardinality_error": ("Cardinality error", "objects per image"),
    "class_error": ("Class error of matched queries", "%"),
    "class_accuracy": ('Class accuracy of matched queries, without "no object"', "%"),
}
_LEARNING_RATES = {"learning_rate": "transformer", "backbone_learning_rate": "backbone"}
_NOT_DRAWN = ("images_per_s", "compile_seconds", "programs", "skipped_images")
_VALIDATION = {
    "ap": ("Validation", {"AP": "AP", "AP50": "AP50", "AP75": "AP75"}, "average precision"),
    "ap_by_size": ("AP by size of the object", {"APs": "small", "APm": "medium", "APl": "large"}, "average precision"),
    "ar": ("Recall by detections per image", {"AR1": "1", "AR10": "10", "AR100": "100"}, "average recall"),
    "pq": ("Panoptic quality", {"PQ": "all", "PQ_things": "things", "PQ_stuff": "stuff"}, "panoptic quality"),
    "sq": ("Segmentation quality", {"SQ": "all", "SQ_things": "things", "SQ_stuff": "stuff"}, "segmentation quality"),
    "rq": ("Recognition quality", {"RQ": "all", "RQ_things": "things", "RQ_stuff": "stuff"}, "recognition quality"),
    "ar_by_size": ("Recall by size of the object", {"ARs": "small", "ARm": "medium", "ARl": "large"}, "average recall"),
}
"""Numbers of a validation that share a chart: title, legend by name, and unit."""


class _Chart(NamedTuple):
    name: str
    """Name of the file."""
    title: str
    unit: str
    curves: Mapping[str, str]
    """The name in the log of each curve, by its text in the legend."""
    log: bool = False
    zero_to_one: bool = False


def training_charts(log: list[dict[str, Any]], out: Path) -> list[Picture]:
    """Write the charts of a run as PNG files into the folder ``out``.

    Args:
      log: the lines of ``metrics.jsonl``.
      out: an existing folder.
    """
    points = _points(log)
    pictures = []
    for chart in (*_training(points), *_validation(points)):
        file = out / f"{re.sub(r'[^0-9A-Za-z_.-]', '_', chart.name)}.png"
        charts.lines(
            file, chart.title, {label: points[name] for label, name in chart.curves.items()},
            x="optimizer step", y=chart.unit, log=chart.log, unit=chart.zero_to_one,
        )  # fmt: skip
        pictures.append((file, f"{chart.title}."))
    return pictures


def _points(log: list[dict[str, Any]]) -> dict[str, charts.Curve]:
    """Steps and values by name. Values that are not defined are dropped: None, or -1 in runs of earlier versions."""
    rows: dict[str, tuple[list[float], list[float]]] = {}
    for line in log:
        for name, value in line.items():
            if value is None or (name.startswith("val/") and value == -1) or not isinstance(value, int | float):
                continue
            steps, values = rows.setdefault(name, ([], []))
            steps.append(line["step"])
            values.append(value)
    return dict(rows)


def _training(points: Mapping[str, charts.Curve]) -> Iterator[_Chart]:
    """Charts of the numbers of training steps."""
    names = [name.removeprefix("train/") for name in points if name.startswith("train/")]
    if "loss" in names:
        yield _Chart("loss", "Loss", "loss", {"loss": "train/loss"}, log=True)
    last = sorted(last_layer_terms(names), key=lambda name: [*_TERMS, name].index(name))
    if last:
        curves = {_term_label(name): f"train/{name}" for name in last}
        yield _Chart("terms", "Loss terms, last decoder layer, unweighted", "loss", curves, log=True)
    for term in last:
        if len(curves := _layers(term, names)) > 1:
            yield _Chart(f"{term}_layers", f"Loss term of every layer: {_term_label(term)}", "loss", curves, log=True)
    rates = [name for name in names if name.endswith("learning_rate")]
    for name in names:
        if name not in {"loss", *rates, *_NOT_DRAWN} and not name.startswith("loss_"):
            title, unit = _DIAGNOSTICS.get(name, (_words(name), name))
            yield _Chart(name, title, unit, {name: f"train/{name}"})
    if rates:
        curves = {_LEARNING_RATES.get(name, _words(name)): f"train/{name}" for name in reversed(rates)}
        yield _Chart("learning_rate", "Learning rates", "learning rate", curves)


def _layers(term: str, names: list[str]) -> dict[str, str]:
    """The curves of a term for all predictions that it is computed from, the last layer last."""
    others = {rest: name for name in names for of, rest in [split_term(name, names)] if of == term and rest}
    return {_layer_label(rest): f"train/{name}" for rest, name in others.items()} | {"last layer": f"train/{term}"}


def _layer_label(rest: str) -> str:
    words = {"enc": "proposals", "dn": "denoising"}
    return ", ".join(words.get(word) or f"layer {int(word) + 1}" for word in rest.split("_"))


def _validation(points: Mapping[str, charts.Curve]) -> Iterator[_Chart]:
    """Charts of the numbers of validations, without those of single classes."""
    left = [name.removeprefix("val/") for name in points if name.startswith("val/") and name.count("/") == 1]
    for prefix in dict.fromkeys(name.rpartition("_")[0] for name in left):
        start = f"{prefix}_" if prefix else ""
        for group, (title, labels, unit) in _VALIDATION.items():
            curves = {label: start + name for name, label in labels.items() if start + name in left}
            left = [name for name in left if name not in curves.values()]
            if curves:
                curves = {label: f"val/{name}" for label, name in curves.items()}
                title = f"{title} ({prefix})" if prefix else title
                yield _Chart(start + group, title, unit, curves, zero_to_one=True)
    for name in left:
        yield _Chart(f"val_{name}", f"Validation: {_words(name)}", name, {name: f"val/{name}"})


def _term_label(name: str) -> str:
    return _TERMS.get(name, name.removeprefix("loss_"))


def _words(name: str) -> str:
    words = name.replace("_", " ")
    return words[:1].upper() + words[1:]
