"""Checks of the objects and images that a data set of the user's own returns, as folders of annotations are checked."""

import contextlib
import reprlib
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np

from detr_jax.config import ConfigError, SourceConfig
from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.data.annotation_checks import check_forms, clip_corners, has_area, valid_boxes
from detr_jax.data.source import DataError, Faults, Objects, Source
from detr_jax.returned import described

_SHOWN_CLASSES = 8  # classes in a message


@contextlib.contextmanager
def errors_of(config: SourceConfig, name: str) -> Iterator[None]:
    """Turns any error in the code of a data set of the user's own into a sentence with the line.

    Args:
      config: the entry of ``data.sources`` whose methods are called.
      name: its key.
    """
    try:
        yield
    except (DataError, ConfigError, MemoryError):
        raise
    except Exception as error:  # the user's code can raise anything
        module = type(config).__module__
        if module.partition(".")[0] == "detr_jax":
            raise
        file = getattr(sys.modules.get(module), "__file__", None)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        where = f"{file}, line {lines[-1]}: " if lines else ""
        raise DataError(
            f"data.sources.{name} ({type(config).__name__}) cannot be opened: {where}{type(error).__name__}: {error}"
        ) from error


def check_objects(source: Source, num_classes: int, *, masks: bool = False) -> None:
    """Records what is wrong with the objects of a data set in its ``faults``, once.

    Labels, shapes and boxes that are not finite are errors. Boxes are treated as those of folders: `usable_objects`
    clips boxes and drops boxes without area in training, and here they are counted.

    Args:
      source: the data set.
      num_classes: classes of the model, for data sets that name no classes. 0: not known.
      masks: each image must have masks of its size, one per object.
    """
    faults = source.faults
    if faults.objects_checked:
        return
    faults.objects_checked = True
    _check_images(source, faults)
    boxes, images = [np.zeros((0, 4))], [np.zeros(0, np.int64)]
    for index in range(len(source)):
        objects = _read(source, index)
        fault = objects if isinstance(objects, tuple) else _fault(source, index, objects, num_classes)
        if fault is None and masks and not isinstance(objects, tuple):
            fault = _fault_of_masks(source, index, objects)
        if fault is not None:
            faults.error(*fault)
        elif not isinstance(objects, tuple):
            boxes.append(np.asarray(objects.boxes, np.float64).reshape(-1, 4))
            images.append(np.full(len(boxes[-1]), index))
    corners, image = np.concatenate(boxes), np.concatenate(images)
    sizes = np.asarray(source.sizes)[image]

    def name(row: int) -> str:
        height, width = sizes[row].tolist()
        box = [int(value) if value.is_integer() else value for value in corners[row].tolist()]
        return f"{_name(source, int(image[row]))}, box {box} in {width} x {height}"

    as_xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    dropped = "were dropped from training; the evaluation has what ground_truth() returns"
    valid_boxes(as_xywh, clip_corners(corners, sizes), sizes, np.ones(len(image), bool), name, dropped, faults)
    check_forms(corners, sizes, faults, written="two corners")


def usable_objects(source: Source, index: int, objects: Objects, *, masks: bool = False) -> Objects:
    """The objects of an image to train on: boxes are clipped to the image, and those without area are dropped.

    With ``masks``, the objects must have masks of the image's size.

    Raises:
      DataError: shapes, labels or numbers are wrong. The message names the image.
    """
    if fault := _fault(source, index, objects, 0):
        raise DataError(f"{_where(source)}: {fault[1]}.")
    corners = np.asarray(objects.boxes, np.float64).reshape(-1, 4)
    corners = clip_corners(corners, np.asarray(source.sizes[index])[None])
    kept = has_area(corners)
    found = objects.masks if masks else None
    if masks and (fault := _fault_of_masks(source, index, objects)):
        raise DataError(f"{_where(source)}: {fault[1]}.")
    return Objects(
        corners[kept].astype(np.float32),
        np.asarray(objects.labels)[kept].astype(np.int32),
        None if found is None else found.select(kept),
    )


def _fault_of_masks(source: Source, index: int, objects: Objects) -> tuple[str, str] | None:
    """Kind and sentence of what is wrong with the masks of an image, or None."""
    wanted = [len(objects.labels), *np.asarray(source.sizes[index]).tolist()]
    masks = objects.masks
    given = [] if masks is None else [len(masks), *masks.size]
    if given == wanted:
        return None
    what = "no masks" if masks is None else f"masks of shape {given}"
    return (
        "images without masks, or with masks of another shape",
        f"{_name(source, index)} has {what}: data.masks=True needs masks of shape {wanted}, one per object",
    )


def all_usable(source: Source) -> Iterator[Objects]:
    """The objects of each image that training uses. Images whose objects cannot be used have none."""
    for index in range(len(source)):
        try:
            yield usable_objects(source, index, source.objects(index))
        except Exception:  # the user's code can raise anything, and `check_objects` has counted it
            yield Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))


def check_image(source: Source, index: int, image: Any) -> None:
    """Checks the pixels of an image.

    Raises:
      DataError: they are not uint8 RGB of the size that ``sizes`` has.
    """
    height, width = np.asarray(source.sizes[index]).tolist()
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != (height, width, 3):
        raise DataError(
            f"{_where(source)}: {_name(source, index)} is {described(image)}: it must be uint8 of shape "
            f"{[height, width, 3]}, with the height and width of its entry in sizes."
        )


def _check_images(source: Source, faults: Faults) -> None:
    """Records images without a unique id or a positive size."""
    ids, sizes = np.asarray(source.image_ids), np.asarray(source.sizes)
    if not len(ids):
        faults.error("empty data sets", "the data set has no image, and at least one is needed")
    for index in np.flatnonzero((sizes < 1).any(axis=-1)).tolist():
        sentence = f"{_name(source, index)} has the size {sizes[index].tolist()}, which must be positive"
        faults.error("images whose height or width is out of range", sentence)
    values, counts = np.unique(ids, return_counts=True)
    for value in values[counts > 1].tolist():
        faults.error(
            "duplicate image ids", f"{counts[values == value][0]} images have the id {value}; ids must be unique"
        )


def _read(source: Source, index: int) -> Objects | tuple[str, str]:
    """The objects of an image, or kind and sentence of the fault that prevents reading them."""
    try:
        return source.objects(index)
    except Exception as error:  # the user's code can raise anything
        reason = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        return "images whose objects cannot be read", f"{_name(source, index)}: {reason.rstrip('.')}"


def _fault(source: Source, index: int, objects: Objects, num_classes: int) -> tuple[str, str] | None:
    """Kind and sentence of what makes the objects of an image unusable, or None."""
    name = _name(source, index)
    arrays: list[Any] = [getattr(objects, field, None) for field in ("boxes", "labels")]
    if not all(isinstance(array, np.ndarray) and array.dtype.kind in "fiu" for array in arrays):
        kinds = " and ".join(described(array) for array in arrays)
        return "objects that are not arrays", f"{name} has as boxes and labels {kinds}: they must be arrays of numbers"
    boxes, labels = arrays
    if labels.ndim != 1 or (len(labels) and boxes.shape != (len(labels), 4)) or (boxes.size and not len(labels)):
        return (
            "objects of the wrong shape",
            f"{name} has boxes of shape {list(boxes.shape)} and labels of shape {list(labels.shape)}: they must be "
            "[n, 4] and [n], with n objects",
        )
    if len(labels) > source.max_objects:
        return "images with more objects than max_objects", (
            f"{name} has {len(labels)} objects, but max_objects is {source.max_objects}: it must be the largest number"
        )
    if not np.isfinite(boxes).all():
        box = boxes[~np.isfinite(boxes).all(axis=1)][0].tolist()
        return "boxes that are not four finite numbers", f"{name} has the box {box}, which must be four finite numbers"
    return _fault_of_labels(source, labels, name, num_classes)


def _fault_of_labels(source: Source, labels: np.ndarray, name: str, num_classes: int) -> tuple[str, str] | None:
    known = source.categories or range(num_classes)
    wrong = [label for label in labels.tolist() if label not in known] if known else []
    if not wrong:
        return None
    listed = [f"{label} {source.categories[label]}" if source.categories else str(label) for label in known]
    shown = ", ".join(listed[:_SHOWN_CLASSES]) + (", ..." if len(listed) > _SHOWN_CLASSES else "")
    return (
        "labels outside of the classes",
        f"{name} has the label {reprlib.repr(wrong[0])}, and the data set has {len(known)} classes ({shown}): each "
        "label must be one of them",
    )


def _name(source: Source, index: int) -> str:
    return f"image {source.image_ids[index]}"


def _where(source: Source) -> str:
    return source.faults.where if hasattr(source, "faults") else type(source).__name__


def is_own(source: Source) -> bool:
    """Whether a data set is read by the user's code and therefore checked here."""
    return not isinstance(source, AnnotatedDataset) and not type(source).__module__.startswith("detr_jax.")
