"""The report of a run: charts, confused classes and the worst images, as PNG files and one HTML page."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from detr_jax.checkpoints import labels_of_run, load_model, read_newest
from detr_jax.config import Config
from detr_jax.data import DataError, Objects, Source, open_source
from detr_jax.evaluation.coco import CocoEvaluator
from detr_jax.evaluation.detections_file import (
    DETECTIONS,
    SNAPSHOTS,
    StoredDetections,
    read_detections,
    read_snapshots,
    write_detections,
)
from detr_jax.evaluation.errors import IOU, confusion, image_error, outside_crowds
from detr_jax.evaluation.metrics import Evaluators, Metrics
from detr_jax.evaluation.training_charts import Picture, training_charts
from detr_jax.evaluation.validator import Validator
from detr_jax.sharding import create_mesh
from detr_jax.visualization import LabelledBoxes, charts
from detr_jax.visualization.animation import training_animation
from detr_jax.visualization.boxes import comparison
from detr_jax.visualization.fonts import class_caption
from detr_jax.visualization.page import write_page
from detr_jax.wording import counted, image_name
from detr_jax.workdir import CONFIG_FILE, read_metrics, read_run_config

_WORST = 12
_CLASS_CURVES = 10  # more curves in one chart could not be distinguished

Pair = tuple[int, Objects, LabelledBoxes]
"""The index of an image, its objects, and the detections in it whose score reaches the threshold."""


def write_report(workdir: Path, out: Path, root: str | None = None) -> Path:
    """Write the report of a run as PNG files and ``index.html``, which contains them.

    The detections are those of the last validation. If the workdir has none, its newest checkpoint is evaluated.

    Args:
      workdir: folder of the run.
      out: folder of the report, which is created.
      root: folder of the data set if it has moved, instead of ``data.root``.

    Returns:
      The path of ``index.html``.

    Raises:
      DataError, ConfigError, CheckpointError: the workdir or its data set cannot be read.
      detr_jax.visualization.charts.MissingMatplotlib: the extra "plot" is not installed.
    """
    config, log = read_run(workdir, root)
    charts.check_matplotlib()
    source = open_source(config, "val", trained=labels_of_run(workdir))
    found = _last_detections(workdir, config, source)
    pairs = _pairs(source, found, config.evaluation.picture_threshold)
    of_boxes = {name: metric for name, metric in config.evaluation.metrics.items() if not metric.needs_masks}
    evaluators = Evaluators(of_boxes, source)
    evaluators.add(found.image_ids.tolist(), found.detections)
    metrics = {**_logged_metrics(log, found.step), **evaluators.compute()}
    out.mkdir(parents=True, exist_ok=True)

    sections = {
        "Training": training_charts(log, out),
        "Precision": _precision_charts(evaluators, source, out),
        "Mistakes": [_confusion_chart(source, pairs, config.evaluation.picture_threshold, out)],
        "The worst images": _worst_images(source, pairs, out),
    }
    if read_snapshots(workdir, source.category_ids):
        animate(workdir, out / "training.webp", config, source)
        sections["Training"].append((out / "training.webp", "The first validation images during the training."))
    numbers = {name: "none" if value is None else f"{value:.3f}" for name, value in metrics.items() if "/" not in name}
    images = counted(len(found.image_ids), "validation image")
    sentence = f"Step {found.step:,}, {images} of {config.data.dataset}."
    page = out / "index.html"
    write_page(page, f"DETR: {workdir.resolve().name}", sentence, numbers, sections)
    return page


def _logged_metrics(log: list[dict[str, Any]], step: int) -> Metrics:
    """The numbers of the validation after a step in the log. Those of masks are not computed again."""
    lines = [line for line in log if line.get("step") == step]
    return {
        name.removeprefix("val/"): value for line in lines for name, value in line.items() if name.startswith("val/")
    }


def read_run(workdir: Path, root: str | None = None) -> tuple[Config, list[dict[str, Any]]]:
    """Read the configuration of a run and the lines of its log.

    Args:
      workdir: folder of the run.
      root: replaces ``data.root`` if it is given.

    Raises:
      DataError: the folder has no ``config.json``.
      ConfigError: the configuration is damaged.
    """
    config = read_run_config(workdir)
    if config is None:
        raise DataError(f"{workdir} holds no {CONFIG_FILE}: give the workdir of a run.")
    if root is not None:
        config.data.root = root
    return config, read_metrics(workdir)


def animate(workdir: Path, path: Path, config: Config, source: Source) -> None:
    """Write the snapshots of a run as an animation.

    Raises:
      DataError: the run has no snapshots, or a snapshot is damaged.
      ValueError: the suffix of ``path`` is not the suffix of an animation.
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
    (model, _), checkpoint = read_newest(workdir, lambda checkpoint: (load_model(checkpoint), checkpoint))
    graph, values = nnx.split(model)
    mesh = create_mesh(jax.devices()[:1])
    step = int(checkpoint.name) if checkpoint.name.isdigit() else 0
    found = Validator(config, source, graph, mesh).detect((nnx.as_pure(values),), step)
    write_detections(file, found, source.category_ids)
    return found


def _precision_charts(evaluators: Evaluators, source: Source, out: Path) -> list[Picture]:
    """Curves of precision and recall, and the AP of each class, if COCO's metrics of boxes are among the metrics."""
    for evaluator in evaluators.by_name.values():
        if isinstance(evaluator, CocoEvaluator):
            return _coco_charts(evaluator, source, out)
    return []


def _coco_charts(evaluator: CocoEvaluator, source: Source, out: Path) -> list[Picture]:
    precision, names = evaluator.precision()
    recall = np.linspace(0, 1, precision.shape[1])
    known = [k for k in range(len(names)) if precision[0, 0, k] > -1]
    if not known:
        return []
    mean = precision[:, :, known].mean(axis=2)
    by_iou = {f"IoU {0.5 + 0.05 * t:.2f}": (recall, mean[t]) for t in (0, 5, 8, 9)}
    files = {name: out / f"{name}.png" for name in ("precision_recall", "precision_recall_classes", "class_ap")}
    charts.lines(files["precision_recall"], "Precision and recall", by_iou, x="recall", y="precision", unit=True)
    ap = {names[k]: float(precision[:, :, k].mean()) for k in known}
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
    """The `Pair` of each image, without detections that only find a crowd.

    Raises:
      DataError: the images of the detections are not the images of the data set.
    """
    indices = _indices(source, found.image_ids, DETECTIONS)
    if missing := set(source.image_ids) - set(found.image_ids.tolist()):
        raise DataError(
            f"{DETECTIONS} lacks image {min(missing)} of the data set, which has changed since. Delete the file: then "
            "the newest checkpoint is evaluated again."
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
      DataError: ``file`` has an image that is not in the data set.
    """
    index_of = {image_id: index for index, image_id in enumerate(source.image_ids)}
    if gone := [image_id for image_id in image_ids.tolist() if image_id not in index_of]:
        raise DataError(
            f"{file} has image {gone[0]}, which is not in the data set (any more): put the image back, or "
            f"delete {file} in the workdir."
        )
    return [index_of[image_id] for image_id in image_ids.tolist()]


def _crowds(source: Source) -> dict[int, Objects]:
    """The crowds of each image that has crowds, by image id."""
    rows: dict[int, list[tuple[list[float], int]]] = {}
    for annotation in source.ground_truth()["annotations"]:
        if annotation.get("iscrowd"):
            x, y, width, height = annotation["bbox"]
            rows.setdefault(annotation["image_id"], []).append(
                ([x, y, x + width, y + height], annotation["category_id"])
            )
    return {
        image: Objects(np.array([box for box, _ in crowds]), np.array([label for _, label in crowds]))
        for image, crowds in rows.items()
    }


def _confusion_chart(source: Source, pairs: list[Pair], threshold: float, out: Path) -> Picture:
    labels = sorted(source.categories)
    place = {label: i for i, label in enumerate(labels)}
    counts = np.zeros((len(labels) + 1, len(labels) + 1), int)
    for _, truth, sure in pairs:
        named = np.isin(sure.labels, labels)  # some ids between those of COCO's classes have no name
        counts += confusion(
            Objects(truth.boxes, np.array([place[x] for x in truth.labels.tolist()], int)),
            Objects(sure.boxes[named], np.array([place[x] for x in sure.labels[named].tolist()], int)),
            len(labels),
        )
    file = out / "confusion.png"
    captions = [class_caption(label, source.categories) for label in labels]
    charts.confusion_matrix(file, "Confusion of classes", counts, captions)
    return file, f"True classes (rows) and detected classes (columns), scores from {threshold:g}, IoU from {IOU:g}."


def _worst_images(source: Source, pairs: list[Pair], out: Path) -> list[Picture]:
    ranked = [
        (*image_error(truth, Objects(sure.boxes, sure.labels)), index, truth, sure) for index, truth, sure in pairs
    ]
    ranked.sort(key=lambda item: (-item[0], -item[1], item[2]))
    pictures = []
    for rank, (error, wrong, index, truth, sure) in enumerate(ranked[:_WORST], 1):
        file = out / f"worst_{rank:02d}.png"
        comparison(source[index].image, LabelledBoxes(truth.boxes, truth.labels), sure, source.categories).save(file)
        caption = (
            f"{image_name(source, index)} (id {source.image_ids[index]}): error {error:.2f} (1 - panoptic quality), "
            f"{wrong} missed or spurious."
        )
        pictures.append((file, caption))
    return pictures
