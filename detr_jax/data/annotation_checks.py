"""Check the values of annotations: select the usable ones, and count the faults of the others."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from detr_jax.data.annotation_rows import LARGEST, Rows, rows_of_items
from detr_jax.data.box_forms import doubt_about_boxes, normalized_boxes
from detr_jax.data.instances import Instances, MaskColumns, PackedBytes, PackedTexts, Truth
from detr_jax.data.mask_checks import usable_masks
from detr_jax.data.source import Faults
from detr_jax.wording import brief

_BOX_SLACK = 1.0  # pixels by which rounding alone can move a COCO box beyond its image
_FLOAT32_STEP = 2.0**-22  # a larger relative difference survives the conversion to float32
_SHOWN_CLASSES = 8  # classes in a message
_LARGEST_ID = 2**53  # the evaluation stores ids as float64


def check_instances(
    content: dict[str, Any], faults: Faults, *, official: bool = False, masks: bool = False
) -> Instances:
    """Checks annotations in COCO's instances form.

    Args:
      content: the three lists of the form; see `detr_jax.data.annotation_rows`.
      faults: see `check_rows`.
      official: see `check_rows`.
      masks: also read ``segmentation``.
    """
    return check_rows(rows_of_items(content, faults, masks=masks), faults, official=official)


def check_rows(rows: Rows, faults: Faults, *, official: bool = False, crowds_are_objects: bool = False) -> Instances:
    """Selects the annotations that can be used, and counts what is wrong with the others.

    Args:
      rows: the annotations.
      faults: receives the faults. It may already hold the faults that the reader found.
      official: evaluate against the original boxes, as COCO's own evaluation does, even if a box has no area or lies
        outside of its image. If False, the evaluation uses the same boxes as training: boxes are clipped to their
        image, and boxes without area are dropped.
      crowds_are_objects: train on crowds too, as the original does with panoptic data.
    """
    categories = _categories(rows, faults)
    kept = _usable_images(rows, faults)
    image_ids, sizes = rows.image_ids[kept], rows.sizes[kept]
    used = _usable_annotations(rows, categories, official, faults)
    used, image = _with_images(rows, used, image_ids, faults)
    whole = usable_masks(rows, used, sizes[image], faults)
    used, image = used[whole], image[whole]

    boxes, areas = rows.boxes[used], rows.areas[used]
    unknown = np.isnan(areas)
    areas[unknown] = np.maximum(boxes[unknown, 2], 0) * np.maximum(boxes[unknown, 3], 0)
    _count(faults.add_all, "annotations without area got the area of their box", used[unknown], rows.name)
    crowds = rows.crowds[used] == 1
    trained = "are trained on" if crowds_are_objects else "are not trained on"
    note = f"crowds or difficult objects {trained}, and the evaluation ignores them"
    _count(faults.note_all, note, used[crowds], rows.name)

    corners = clip_corners(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), sizes[image])

    def name(row: int) -> str:
        height, width = sizes[image[row]].tolist()
        box = [int(value) if value.is_integer() else value for value in boxes[row].tolist()]
        return f"{rows.name(int(used[row]))} of image {image_ids[image[row]]}, bbox {box} in {width} x {height}"

    dropped = "were dropped from training; COCO's official evaluation keeps them" if official else "were dropped"
    valid = valid_boxes(boxes, corners, sizes[image], ~crowds, name, dropped, faults)
    check_forms(boxes[~crowds], sizes[image][~crowds], faults)
    objects = np.flatnonzero(valid & (~crowds | crowds_are_objects))
    objects = objects[np.argsort(image[objects], kind="stable")]
    evaluated = np.ones(len(used), bool)
    if official:
        truth = Truth(image.astype(np.int32), rows.category_ids[used], boxes, areas, crowds)
    else:
        evaluated = valid
        truth = _trained_truth(image, rows.category_ids[used], corners, boxes, areas, crowds, valid)
    names = rows.file_names if kept.all() else list(itertools.compress(rows.file_names, kept))
    _note_shared_files(names, faults)
    return Instances(
        categories,
        {},
        image_ids,
        PackedTexts(names),
        sizes,
        np.searchsorted(image[objects], np.arange(len(image_ids) + 1)),
        corners[objects].astype(np.float32),
        rows.category_ids[used][objects],
        truth,
        faults,
        _mask_columns(rows, used, objects, evaluated),
    )


def _mask_columns(rows: Rows, used: np.ndarray, objects: np.ndarray, evaluated: np.ndarray) -> MaskColumns | None:
    """The masks of the objects, as positions among the ``used`` rows, and of the ``evaluated`` ones [k] bool."""
    texts, ids = rows.segmentations, rows.segment_ids
    if texts is None and ids is None:
        return None
    kept = used[evaluated]
    return MaskColumns(
        (np.cumsum(evaluated) - 1)[objects],
        None if texts is None else PackedBytes([texts[row] for row in kept.tolist()]),
        None if ids is None else ids[kept],
    )


def _count(add: Callable[[str, int, Iterator[str]], None], kind: str, rows: np.ndarray, name: Callable) -> None:
    if len(rows):
        add(kind, len(rows), (name(int(row)) for row in rows))


def _repeated(values: np.ndarray) -> np.ndarray:
    """[len(values)] bool: an earlier value is the same."""
    repeated = np.ones(len(values), bool)
    repeated[np.unique(values, return_index=True)[1]] = False
    return repeated


def _categories(rows: Rows, faults: Faults) -> dict[int, str]:
    categories: dict[int, str] = {}
    for category_id, name in rows.categories:
        if not 0 <= category_id < _LARGEST_ID:
            faults.error(
                "categories whose id is out of range",
                f"a category has the id {brief(category_id)}, which must be at least 0 and below 2**53",
            )
        elif category_id in categories:
            faults.error("duplicate category ids", f"two categories have the id {category_id}; ids must be unique")
        else:
            categories[category_id] = name
    taken: set[str] = set()
    used = set(np.unique(rows.category_ids).tolist())
    # Some tools write an empty group, so of two categories with the same name, the one with annotations keeps it.
    for category_id in sorted(categories, key=lambda one: (one not in used, list(categories).index(one))):
        name = categories[category_id]
        if name in taken:
            faults.add("duplicate category names got their id appended", f"category {category_id}, {name!r}")
            categories[category_id] = name = f"{name} ({category_id})"
        taken.add(name)
    return categories


def _usable_images(rows: Rows, faults: Faults) -> np.ndarray:
    """Which images have a unique id and a size within the limits, [I] bool."""
    ids, sizes = rows.image_ids, rows.sizes
    bad_id = (ids < 0) | (ids >= _LARGEST_ID)
    bad_size = ((sizes < 1) | (sizes >= LARGEST)).any(axis=1)
    repeated = _repeated(ids)

    def wrong_size(row: int) -> str:
        height, width = sizes[row].tolist()
        side = f"height={height}" if not 1 <= height < LARGEST else f"width={width}"
        return f"image {ids[row]} has {side}, which must be positive and below {LARGEST}"

    def wrong_id(row: int) -> str:
        return f"an image has the id {ids[row]}, which must be at least 0 and below 2**53"

    def same_id(row: int) -> str:
        first = rows.file_names[int(np.flatnonzero(ids == ids[row])[0])]
        return f"two images have the id {ids[row]} ({first} and {rows.file_names[row]}); ids must be unique"

    _count(faults.error_all, "images whose height or width is out of range", np.flatnonzero(bad_size), wrong_size)
    _count(faults.error_all, "images whose id is out of range", np.flatnonzero(bad_id & ~bad_size), wrong_id)
    repeated &= ~(bad_id | bad_size)
    _count(faults.error_all, "duplicate image ids", np.flatnonzero(repeated), same_id)
    if not len(ids) and not faults.errors and not faults.left_out:
        faults.error("empty lists of images", "no image is listed, and at least one is needed")
    return ~(bad_size | bad_id | repeated)


def _usable_annotations(rows: Rows, categories: dict[int, str], official: bool, faults: Faults) -> np.ndarray:
    """The rows of annotations that have a unique id, a known image and a known category."""
    repeated = _repeated(rows.ids)
    listed = np.concatenate([rows.image_ids, np.array(sorted(rows.refused_images), np.int64)])
    orphaned = ~np.isin(rows.owners, listed)
    unknown = ~np.isin(rows.category_ids, np.array(list(categories), np.int64))

    def same_id(row: int) -> str:
        return f"two annotations have the id {rows.ids[row]}; ids must be unique"

    def no_image(row: int) -> str:
        return f"{rows.name(row)} belongs to image {rows.owners[row]}, which is not listed under images"

    def no_category(row: int) -> str:
        category_id = rows.category_ids[row]
        if official:
            return f"{rows.name(row)} has category_id={category_id}, which is not listed under categories"
        listed = ", ".join(f"{label} {name}" for label, name in itertools.islice(categories.items(), _SHOWN_CLASSES))
        more = ", ..." if len(categories) > _SHOWN_CLASSES else ""
        return f"{rows.name(row)} has class {category_id}, and the data set has {listed}{more}"

    _count(faults.error_all, "duplicate annotation ids", np.flatnonzero(repeated), same_id)
    _count(
        faults.error_all, "annotations of an image that is not listed", np.flatnonzero(orphaned & ~repeated), no_image
    )
    unlisted = np.flatnonzero(unknown & ~orphaned & ~repeated)
    _count(faults.error_all, "annotations of an unknown category", unlisted, no_category)
    return np.flatnonzero(~(repeated | orphaned | unknown))


def _with_images(rows: Rows, used: np.ndarray, image_ids: np.ndarray, faults: Faults) -> tuple[np.ndarray, np.ndarray]:
    """The rows whose image is usable, and the index of each row's image.

    The images of the other rows are already counted as errors.
    """
    order = np.argsort(image_ids)
    if not len(order):
        return used[:0], used[:0]
    position = np.minimum(np.searchsorted(image_ids[order], rows.owners[used]), len(order) - 1)
    image = order[position]
    found = image_ids[image] == rows.owners[used]
    return used[found], image[found]


def clip_corners(corners: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """xyxy boxes [k, 4] in pixels, clipped to images of (height, width) ``sizes`` [k, 2]."""
    return np.concatenate([np.maximum(corners[:, :2], 0), np.minimum(corners[:, 2:], sizes[:, ::-1])], axis=1)


def has_area(corners: np.ndarray) -> np.ndarray:
    """Which clipped xyxy boxes [k, 4] have an area that remains in float32, [k] bool."""
    return np.asarray((corners[:, 2:] - corners[:, :2] > corners[:, 2:] * _FLOAT32_STEP).all(axis=1))


def check_forms(boxes: np.ndarray, sizes: np.ndarray, faults: Faults, written: str = "corner and size") -> None:
    """Records boxes [k, 4] that seem to have another unit or form than ``written``.

    Single boxes cannot show another unit or form, so all of them are looked at together.
    """
    if sentence := normalized_boxes(boxes, sizes, written):
        faults.error("normalised boxes", sentence)
    elif doubt := doubt_about_boxes(boxes, sizes, written):
        if doubt.certain:
            faults.error("boxes in another form", doubt.sentence.rstrip("."))
        else:
            faults.doubts.append(doubt.sentence)


def valid_boxes(
    boxes: np.ndarray,
    corners: np.ndarray,
    sizes: np.ndarray,
    counted: np.ndarray,
    name: Callable[[int], str],
    dropped: str,
    faults: Faults,
) -> np.ndarray:
    """Which boxes have an area within their image, [k] bool. Faults are counted only for the ``counted`` boxes.

    Args:
      boxes: [k, 4] xywh in pixels, as they are written.
      corners: [k, 4] xyxy in pixels, clipped to the image.
      sizes: [k, 2] (height, width) of each box's image in pixels.
      counted: [k] bool.
      name: names a box in messages.
      dropped: what happens to boxes without area, such as "were dropped".
      faults: receives the faults.
    """
    flat = (boxes[:, 2:] <= corners[:, 2:] * _FLOAT32_STEP).any(axis=1)
    outside = ~has_area(corners) & ~flat
    reach = np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - sizes[:, ::-1]).max(axis=1, initial=-1)
    over = (reach > _BOX_SLACK) & ~(flat | outside)
    _count(faults.add_all, f"boxes without area {dropped}", np.flatnonzero(flat & counted), name)
    _count(faults.add_all, f"boxes entirely outside of their image {dropped}", np.flatnonzero(outside & counted), name)
    clipped = "boxes that reach outside of their image were clipped"
    _count(faults.add_all, clipped, np.flatnonzero(over & counted), name)
    return ~(flat | outside)


def _trained_truth(
    image: np.ndarray,
    labels: np.ndarray,
    corners: np.ndarray,
    boxes: np.ndarray,
    areas: np.ndarray,
    crowds: np.ndarray,
    valid: np.ndarray,
) -> Truth:
    """The boxes that training uses, as ground truth. The area of a clipped box is the area that remains."""
    clipped = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    cut = np.abs(clipped - boxes).max(axis=1, initial=0) > _BOX_SLACK
    clipped[~cut] = boxes[~cut]
    areas = np.where(cut, clipped[:, 2:].prod(axis=1), areas)
    return Truth(image[valid].astype(np.int32), labels[valid], clipped[valid], areas[valid], crowds[valid])


def _note_shared_files(names: Sequence[str], faults: Faults) -> None:
    if len(set(names)) == len(names):
        return
    seen: set[str] = set()
    repeated = [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]
    kind = "images share their file with another image, and each is trained on with its own boxes only"
    faults.note_all(kind, len(repeated), repeated)
