"""The report of a run: charts, confusions and the worst images, as PNG files and one HTML page."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from detr_jax.checkpoints import find_checkpoint, labels_of_run, load_model
from detr_jax.config import Config, ConfigError, from_json
from detr_jax.data import DataError, Objects, Source, open_source
from detr_jax.evaluation.coco import METRICS, CocoEvaluator, Metrics
from detr_jax.evaluation.detections_file import (
    DETECTIONS,
    SNAPSHOTS,
    StoredDetections,
    read_detections,
    read_snapshots,
    write_detections,
)
from detr_jax.evaluation.errors import IOU, confusion, image_error, outside_crowds
from detr_jax.evaluation.validator import Validator
from detr_jax.sharding import create_mesh
from detr_jax.visualization import LabelledBoxes, charts
from detr_jax.visualization.animation import training_animation
from detr_jax.visualization.boxes import comparison
from detr_jax.visualization.fonts import class_caption
from detr_jax.visualization.page import write_page
from detr_jax.wording import counted, image_name

_WORST = 12
_CLASS_CURVES = 10  # classes that a chart of precision and recall can tell apart

Picture = tuple[Path, str]
"""A file and its caption."""

Pair = tuple[int, Objects, LabelledBoxes]
"""The index of an image, its objects, and the sure detections in it."""


def write_report(workdir: Path, out: Path, root: str | None = None) -> Path:
    """Writes PNG files and ``index.html``, which holds them all, into the folder ``out``; returns the page.

    What the last validation found is taken from the workdir or, where a run left none, found anew by its newest
    checkpoint. ``root`` stands in the place of the configuration's ``data.root``, where the data set has moved.

    Raises:
      DataError, ConfigError, CheckpointError: the workdir, or its data set, cannot be read.
      detr_jax.visualization.charts.MissingMatplotlib: the extra "plot" is not installed.
    """
    config, log = read_run(workdir, root)
    charts.check_matplotlib()
    source = open_source(config, "val", trained=labels_of_run(workdir))
    found = _last_detections(workdir, config, source)
    pairs = _pairs(source, found, config.evaluation.picture_threshold)
    evaluator = CocoEvaluator(source.ground_truth())
    evaluator.add(found.image_ids.tolist(), found.boxes, found.scores, found.labels)
    metrics = evaluator.metrics()
    out.mkdir(parents=True, exist_ok=True)

    sections = {
        "Training": _training_charts(log, out),
        "Precision": _precision_charts(evaluator, metrics, source, out),
        "Mistakes": [_confusion_chart(source, pairs, config.evaluation.picture_threshold, out)],
        "The worst images": _worst_images(source, pairs, out),
    }
    if read_snapshots(workdir, source.category_ids):
        animate(workdir, out / "training.webp", config, source)
        sections["Training"].append((out / "training.webp", "The first validation images over the training."))
    numbers = {name: "none" if (value := metrics[name]) is None else f"{value:.3f}" for name in METRICS}
    images = counted(len(found.image_ids), "validation image")
    sentence = f"Step {found.step:,}, {images} of {config.data.dataset}."
    page = out / "index.html"
    write_page(page, f"DETR: {workdir.resolve().name}", sentence, numbers, sections)
    return page


def read_run(workdir: Path, root: str | None = None) -> tuple[Config, list[dict[str, Any]]]:
    """The configuration of a run, with another ``data.root`` where one is given, and the lines of its log.

    Raises:
      DataError: the folder holds no run. ConfigError: its configuration is damaged.
    """
    if not (workdir / "config.json").is_file():
        raise DataError(f"{workdir} holds no config.json: give the workdir of a run.")
    log = []
    file = workdir / "metrics.jsonl"
    for text in file.read_text().splitlines() if file.is_file() else ():
        try:
            log.append(json.loads(text))
        except json.JSONDecodeError:  # the last line of a run that was killed
            continue
    try:
        config = from_json((workdir / "config.json").read_text())
    except ConfigError as error:
        raise ConfigError(f"{workdir / 'config.json'} is damaged: {error}") from None
    if root is not None:
        config.data.root = root
    return config, log


def animate(workdir: Path, path: Path, config: Config, source: Source) -> None:
    """Writes the snapshots of a run as an animation.

    Raises:
      DataError: the run has no snapshots, or one is damaged. ValueError: the file's suffix is not known.
    """
    snapshots = read_snapshots(workdir, source.category_ids)
    if not snapshots:
        raise DataError(f"{workdir} has no snapshots: train with evaluation.snapshots and evaluation.pictures above 0.")
    images = [source[index].image for index in _indices(source, snapshots[0].image_ids, SNAPSHOTS)]
    frames = [list(map(LabelledBoxes, one.boxes, one.labels, one.scores)) for one in snapshots]
    training_animation(path, images, [snapshot.step for snapshot in snapshots], frames)


def _last_detections(workdir: Path, config: Config, source: Source) -> StoredDetections:
    file = workdir / DETECTIONS
    if file.is_file():
        return read_detections(file, source.category_ids)
    checkpoint = find_checkpoint(workdir)
    graph, values = nnx.split(load_model(checkpoint)[0])
    mesh = create_mesh(jax.devices()[:1])
    step = int(checkpoint.name) if checkpoint.name.isdigit() else 0
    found = Validator(config, source, graph, mesh).detect((nnx.as_pure(values),), step)
    write_detections(file, found, source.category_ids)
    return found


def _training_charts(log: list[dict[str, Any]], out: Path) -> list[Picture]:
    def curve(name: str) -> tuple[list[float], list[float]]:
        """Steps and values, without those that are not defined: None, or -1 in runs of earlier versions."""
        rows = [(line["step"], value) for line in log if (value := line.get(name)) is not None and value > -1]
        return [step for step, _ in rows], [value for _, value in rows]

    charted = {
        "loss": ("Loss", {"loss": "train/loss"}, "loss", True),
        "terms": (
            "Loss terms, last decoder layer, unweighted",
            {"classes": "train/loss_ce", "L1 of boxes": "train/loss_bbox", "GIoU of boxes": "train/loss_giou"},
            "loss",
            True,
        ),
        "learning_rate": (
            "Learning rates",
            {"transformer": "train/learning_rate", "backbone": "train/backbone_learning_rate"},
            "learning rate",
            False,
        ),
        "ap": ("Validation", {"AP": "val/AP", "AP50": "val/AP50", "AP75": "val/AP75"}, "average precision", False),
    }
    pictures = []
    for name, (title, fields, unit, log_scale) in charted.items():
        curves = {label: points for label, field in fields.items() if (points := curve(field))[0]}
        if curves:
            file = out / f"{name}.png"
            charts.lines(file, title, curves, x="optimiser step", y=unit, log=log_scale, unit=name == "ap")
            pictures.append((file, f"{title}."))
    return pictures


def _precision_charts(evaluator: CocoEvaluator, metrics: Metrics, source: Source, out: Path) -> list[Picture]:
    precision, names = evaluator.precision()
    recall = np.linspace(0, 1, precision.shape[1])
    known = [k for k in range(len(names)) if precision[0, 0, k] > -1]
    if not known:
        return []
    mean = precision[:, :, known].mean(axis=2)
    by_iou = {f"IoU {0.5 + 0.05 * t:.2f}": (recall, mean[t]) for t in (0, 5, 8, 9)}
    files = {name: out / f"{name}.png" for name in ("precision_recall", "precision_recall_classes", "class_ap")}
    charts.lines(files["precision_recall"], "Precision and recall", by_iou, x="recall", y="precision", unit=True)
    ap = {names[k]: value for k in known if (value := metrics[f"AP/{names[k]}"]) is not None}
    captions = {name: class_caption(label, source.categories) for label, name in source.categories.items()}
    by_caption = {captions[name]: value for name, value in ap.items()}
    charts.bars(files["class_ap"], "AP of each class", by_caption, x="average precision")
    shown = sorted(known, key=lambda k: ap[names[k]])[:_CLASS_CURVES]
    by_class = {captions[names[k]]: (recall, precision[0, :, k]) for k in shown}
    which = "" if len(shown) == len(known) else f" of the {len(shown)} weakest classes"
    charts.lines(
        files["precision_recall_classes"], "Precision and recall at IoU 0.5", by_class, x="recall", y="precision",
        unit=True,
    )  # fmt: skip
    return [
        (files["precision_recall"], "Precision over recall, mean of the classes."),
        (files["precision_recall_classes"], f"Precision over recall at IoU 0.5{which}."),
        (files["class_ap"], "AP of each class, mean over IoU 0.5 to 0.95."),
    ]


def _pairs(source: Source, found: StoredDetections, threshold: float) -> list[Pair]:
    """Index, objects and sure detections of each image, without the detections that only find a crowd.

    Raises:
      DataError: the detections are not those of the data set's images.
    """
    indices = _indices(source, found.image_ids, DETECTIONS)
    if missing := set(source.image_ids) - set(found.image_ids.tolist()):
        raise DataError(
            f"{DETECTIONS} lacks image {min(missing)} of the data set, which has changed since: delete the "
            "file, and the newest checkpoint is evaluated again."
        )
    crowds = _crowds(source)
    pairs = []
    columns = found.image_ids.tolist(), found.boxes, found.scores, found.labels
    for index, image_id, boxes, scores, labels in zip(indices, *columns, strict=True):
        sure, truth = scores >= threshold, source.objects(index)
        if image_id in crowds:
            sure &= outside_crowds(Objects(boxes, labels), truth, crowds[image_id])
        pairs.append((index, truth, LabelledBoxes(boxes[sure], labels[sure], scores[sure])))
    return pairs


def _indices(source: Source, image_ids: np.ndarray, file: str) -> list[int]:
    """The positions of images in the data set.

    Raises:
      DataError: ``file`` tells of an image that is not in it.
    """
    index_of = {image_id: index for index, image_id in enumerate(source.image_ids)}
    if gone := [image_id for image_id in image_ids.tolist() if image_id not in index_of]:
        raise DataError(
            f"{file} has image {gone[0]}, which is not in the data set (any more): bring the image back, or "
            f"delete {file} in the workdir."
        )
    return [index_of[image_id] for image_id in image_ids.tolist()]


def _crowds(source: Source) -> dict[int, Objects]:
    """The crowds of the images that have some, by image id."""
    rows: dict[int, list[tuple[list[float], int]]] = {}
    for annotation in source.ground_truth()["annotations"]:
        if annotation.get("iscrowd"):
            x, y, width, height = annotation["bbox"]
            rows.setdefault(annotation["image_id"], []).append(
                ([x, y, x + width, y + height], annotation["category_id"])
            )
    return {image: Objects(*map(np.array, zip(*crowds, strict=True))) for image, crowds in rows.items()}


def _confusion_chart(source: Source, pairs: list[Pair], threshold: float, out: Path) -> Picture:
    labels = sorted(source.categories)
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels) + 1, len(labels) + 1), int)
    for _, truth, sure in pairs:
        named = np.isin(sure.labels, labels)  # ids between those of COCO's classes name nothing
        counts += confusion(
            Objects(truth.boxes, np.array([place[x] for x in truth.labels.tolist()], int)),
            Objects(sure.boxes[named], np.array([place[x] for x in sure.labels[named].tolist()], int)),
            len(labels),
        )
    file = out / "confusion.png"
    captions = [class_caption(label, source.categories) for label in labels]
    charts.confusion_matrix(file, "Confusion of classes", counts, captions)
    return file, f"Objects (rows) and what was found there (columns), scores from {threshold:g}, IoU from {IOU:g}."


def _worst_images(source: Source, pairs: list[Pair], out: Path) -> list[Picture]:
    judged = [
        (*image_error(truth, Objects(sure.boxes, sure.labels)), index, truth, sure) for index, truth, sure in pairs
    ]
    judged.sort(key=lambda item: (-item[0], -item[1], item[2]))
    pictures = []
    for rank, (error, wrong, index, truth, sure) in enumerate(judged[:_WORST], 1):
        file = out / f"worst_{rank:02d}.png"
        comparison(source[index].image, LabelledBoxes(truth.boxes, truth.labels), sure, source.categories).save(file)
        caption = (
            f"{image_name(source, index)} (id {source.image_ids[index]}): error {error:.2f} (1 - panoptic quality), "
            f"{wrong} missed or spurious."
        )
        pictures.append((file, caption))
    return pictures
