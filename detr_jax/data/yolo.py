"""`YoloDataset`: YOLO data sets, with a ``data.yaml``, folders of images and a text file of boxes for each image."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from detr_jax.data.annotated import AnnotatedFolder
from detr_jax.data.annotation_checks import check_instances
from detr_jax.data.annotation_rows import shown
from detr_jax.data.boundaries import OutsideError
from detr_jax.data.image_folders import count_unread
from detr_jax.data.images import ExifRule, read_size
from detr_jax.data.layouts import WHOLE, Layout, in_order
from detr_jax.data.source import DataError, Faults
from detr_jax.data.text_files import read_any_text
from detr_jax.data.yolo_images import split_images
from detr_jax.data.yolo_labels import LabelFiles
from detr_jax.data.yolo_layout import YoloLayout, description_file, read_layout
from detr_jax.data.yolo_rows import (
    BOUNDS,
    BOX,
    COUNT,
    DUPLICATE,
    LABEL,
    NUMBER,
    SIGNS,
    Form,
    Labels,
    boxes_of,
    conclude,
    corners_by_line,
    parse_labels,
)
from detr_jax.wording import counted

_THREADS = 8  # the threads mostly wait for files
_CHUNK = 64  # files that a thread reads at a time
_LARGEST_NORMALIZED = 2.0  # larger coordinates are certainly not normalised


class YoloDataset(AnnotatedFolder):
    """The images and labels of a ``data.yaml``.

    Its fields ``train``, ``val`` (or ``valid``, ``validation``) and ``test`` give a folder, a text file that lists
    images, or several of these, relative to ``path``. A file ``obj.data`` (Darknet, CVAT) or a list of class names
    (``classes.txt``, ``notes.json``) is read as well. The labels of ``.../images/a.jpg`` are in ``.../labels/a.txt`` or
    in ``a.txt`` next to the image; see `LabelFiles`. An image without such a file has no objects. Labels are the keys
    of ``names``, or the positions if it is a list.

    A row describes an object. It is a class and cx cy w h, which a confidence, a track number or key points may follow.
    Or it is a class and the corners of a polygon, whose bounding box is used. All coordinates are in 0..1 of the
    displayed image (with its EXIF rotation). `conclude` finds the form of the rows from ``kpt_shape`` and ``task`` of
    the ``data.yaml`` and from all rows.

    Args:
      data_file: the ``data.yaml``, or another file or folder that `read_layout` reads.
      split: "train", "val" or "test", or another usual name of these. "all" if the data set has no splits.
      root: the folder of the data set, by default that of ``data_file``.
      strict: raise on the first error. If False, faulty rows are dropped and recorded in ``faults``.
      skip: drop images without a readable header, and record them in ``faults``.
      rows: the form of a row: "box" (the first four numbers; others are ignored), "polygon" or "pose". "auto": the form
        is found as described above.
      exif: see `detr_jax.data.images.decode`. Boxes belong to the displayed image unless it is "ignore".
      max_level: see `detr_jax.data.images.decode`.
      masks: read the polygons of the rows as masks. Each row must be a polygon; a box among polygons is a rectangle.
      allow_outside: accept folders, lists and images outside of ``root`` and of the folder of ``data_file``.

    Raises:
      DataError: a file or folder is missing, or ``data.yaml`` is damaged. If ``strict``, also for a faulty row, for
        rows of unclear form and, without ``skip``, for an image without a readable header.
    """

    boxes_as_displayed = True

    understood: str
    """A sentence that says which form the rows have, and why."""

    def __init__(
        self,
        data_file: str | Path,
        split: str,
        root: Path | None = None,
        *,
        strict: bool = True,
        skip: bool = False,
        rows: str = "auto",
        exif: ExifRule = "auto",
        max_level: float = 0,
        masks: bool = False,
        allow_outside: bool = False,
    ):
        layout = read_layout(Path(data_file), root, allow_outside=allow_outside)
        faults = Faults(f"{layout.file} ({split})", skip=skip)
        for kind, name in layout.notes:
            faults.add(kind, name)
        pairs = _pairs(layout, split, faults)
        files = list(_read_all(pairs, layout, faults, rotate=exif != "ignore"))
        form = _form(files, layout, split, rows)
        self.understood = _understood(files, form)
        if not form.kind:
            faults.error("label files whose rows have an unclear form", _unclear(layout, form))
        elif masks and form.kind != "polygon" and any(len(one.labels.rows) for one in files):
            faults.error(
                "label files without polygons",
                f"the rows of the label files of {layout.file} are boxes ({form.reason}), and data.masks=True needs "
                "polygons",
            )
        numbers = {name: label for label, name in layout.names.items()}
        content: dict[str, list[Any]] = {
            "images": [
                {"id": one.image_id, "file_name": one.image, "height": one.size[0], "width": one.size[1]}
                for one in files
            ],
            "annotations": list(_annotations(files, form, faults, numbers if masks else None)) if form.kind else [],
            "categories": [{"id": label, "name": name} for label, name in layout.names.items()],
        }
        super().__init__(check_instances(content, faults, masks=masks), strict=strict, exif=exif, max_level=max_level)


def recognise_yolo(root: Path, given: str = "", *, allow_outside: bool = False) -> Layout | None:
    """The layout of a YOLO data set in a folder, or None if the folder has none.

    Args:
      root: the folder.
      given: the file in the folder that describes the data set. If it is empty, the usual names are tried.
      allow_outside: as for `YoloDataset`.
    """
    file = root / given if given else description_file(root) if root.is_dir() else None
    if file is None:
        return None
    try:
        layout = read_layout(file, root, allow_outside=allow_outside)
    except DataError:
        return None
    splits: dict[str, int] = {}
    summaries: list[tuple[str, str]] = []
    for split, entries in layout.splits.items():
        ignored = Faults(str(root))
        try:
            found = split_images(layout, split, ignored)
        except DataError as error:  # the error is raised when the split is opened
            splits[split] = 0
            reason = "is outside of the data set" if isinstance(error, OutsideError) else "does not exist"
            summaries.append((split, f"{split}: {', '.join(entries)}, which {reason}"))
            continue
        paths = found.paths
        if split == WHOLE and not any(LabelFiles(file.parent, found.folders).of(paths, ignored)):
            continue  # other kinds of data sets may have a list of class names too
        splits[split] = len(paths)
        folders = {os.path.dirname(path) for path in paths}
        where = _below(os.path.commonpath(folders), root) if len(entries) == 1 else f"{len(entries)} folders or lists"
        summaries.append((split, f"{split}: {where} ({counted(len(paths), 'image')})"))
    if not any(splits.values()):
        return None
    order = in_order(splits)
    line = "; ".join(text for _, text in sorted(summaries, key=lambda one: order.index(one[0])))
    locations = {split: (file, split, root) for split in order}
    return Layout("yolo", locations, f"{root} is read as YOLO by {_below(str(file), root)} ({line})")


class _File(NamedTuple):
    """An image with a readable header, and its labels."""

    image_id: int
    image: str
    size: tuple[int, int]
    """(height, width) in pixels."""
    labels_path: str
    labels: Labels


def _pairs(layout: YoloLayout, split: str, faults: Faults) -> list[tuple[str, str | None]]:
    """The images of a split with their label files."""
    found = split_images(layout, split, faults)
    labels = LabelFiles(layout.file.parent, found.folders)
    files = labels.of(found.paths, faults)
    labels.ignore(found.others)
    labels.count_unused(faults)
    count_unread(found.folders, faults)
    return list(zip(found.paths, files, strict=True))


def _below(path: str, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _read_all(
    pairs: Sequence[tuple[str, str | None]], layout: YoloLayout, faults: Faults, *, rotate: bool
) -> Iterator[_File]:
    """Reads the headers and labels of images. Ids count from 1 and include images that cannot be read."""
    numbers = {name: label for label, name in layout.names.items()}

    def read(start: int) -> list[tuple[tuple[int, int] | str, Labels | str]]:
        return [(_size(image, rotate), _labels(path, numbers)) for image, path in pairs[start : start + _CHUNK]]

    with ThreadPoolExecutor(_THREADS) as threads:
        read_files = (one for some in threads.map(read, range(0, len(pairs), _CHUNK)) for one in some)
        for image_id, ((image, path), (size, labels)) in enumerate(zip(pairs, read_files, strict=True), start=1):
            if isinstance(size, str):
                faults.unopened("images without a readable header", size)
                continue
            if isinstance(labels, str):
                faults.error("label files that cannot be read", f"{path} cannot be read ({labels})")
                labels = parse_labels("", {})
            for number, line in labels.faults:
                faults.error(
                    "rows that are not a class and numbers",
                    f"{path} row {number} is {shown(line)}, which must be a class, then cx cy w h or three or more "
                    "corners x y",
                )
            for kind, count in labels.oddities.items():
                for _ in range(count):
                    faults.add(kind, str(path))
            yield _File(image_id, image, size, path or "", labels)


def _size(image: str, rotate: bool) -> tuple[int, int] | str:
    """The (height, width) of an image in pixels, or a sentence that says why its header cannot be read."""
    try:
        return read_size(Path(image), rotate=rotate)
    except DataError as error:
        return str(error).rstrip(".")


def _labels(path: str | None, numbers: dict[str, int]) -> Labels | str:
    if path is None:
        return parse_labels("", numbers)
    try:
        return parse_labels(read_any_text(path), numbers)
    except OSError as error:
        return str(error)


def _form(files: list[_File], layout: YoloLayout, split: str, requested: str) -> Form:
    """The form of the rows. If the rows of a split leave it open, the rows of the other splits are read too."""

    def concluded(rows: list[np.ndarray]) -> Form:
        return conclude(
            np.concatenate([np.zeros((0, SIGNS + 1)), *rows]),
            key_points=layout.key_points,
            task=layout.task,
            requested=requested,
        )

    rows = [one.labels.rows for one in files]
    form = concluded(rows)
    for other in layout.splits:
        if form.kind or not rows:
            break
        if other != split:
            ignored = Faults(str(layout.file))
            try:
                pairs = _pairs(layout, other, ignored)
            except DataError:
                continue
            numbers = {name: label for label, name in layout.names.items()}
            read = (_labels(path, numbers) for _, path in pairs)
            rows += [labels.rows for labels in read if isinstance(labels, Labels)]
            form = concluded(rows)
    return form


def _understood(files: list[_File], form: Form) -> str:
    if not any(len(one.labels.rows) for one in files):
        return "no row of labels was found"
    return (
        f"a row is a class and {form.words} ({form.reason})"
        if form.kind
        else f"the form of the rows is unclear ({form.reason})"
    )


def _unclear(layout: YoloLayout, form: Form) -> str:
    return (
        f"the rows of the label files of {layout.file} may be boxes or polygons ({form.reason}): "
        'set data.sources.yolo.rows to "box" (the first four numbers are cx cy w h) or "polygon" (corners x y), or '
        "add kpt_shape to this file"
    )


def _annotations(
    files: list[_File], form: Form, faults: Faults, numbers: dict[str, int] | None
) -> Iterator[dict[str, Any]]:
    """The annotations of the rows that fit the form. Other rows are counted as faults.

    If ``numbers``, the class by name, are given, the annotations have polygons.
    """
    pixels = _looks_like(files, form)
    number = 0
    for one in files:
        height, width = one.size
        rows = one.labels.rows
        corners = _corners(one.labels_path, numbers) if numbers is not None and len(rows) else {}
        for row, (cx, cy, w, h) in zip(rows.tolist(), boxes_of(rows, form).tolist(), strict=True):
            count, where = int(row[COUNT]), f"{one.labels_path} row {int(row[NUMBER])}"
            if not form.fits(count):
                faults.error(
                    "rows with another form than the others",
                    f"{where} has {count} numbers after the class, which must be a class, then {form.words} "
                    f"({form.reason})",
                )
            elif max(map(abs, row[BOX] if form.kind == "box" or count == 4 else row[BOUNDS])) > _LARGEST_NORMALIZED:
                line = shown(_line(one.labels_path, int(row[NUMBER])))
                faults.error(
                    "rows that are not normalised",
                    f"{where} is {line}, which must be in 0..1 of the image, not in pixels{pixels}",
                )
            elif int(row[SIGNS]) & DUPLICATE:
                faults.add("duplicate rows were dropped", where)
            else:
                number += 1
                yield {
                    "id": number,
                    "where": where,
                    "image_id": one.image_id,
                    "category_id": int(row[LABEL]),
                    "bbox": [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height],
                    "area": w * width * h * height,
                    "iscrowd": 0,
                    **_segmentation(corners.get(int(row[NUMBER])), one.size, where, faults),
                }


def _corners(path: str, numbers: dict[str, int]) -> dict[int, list[float]]:
    """The numbers after the class of each row of a label file, by line."""
    try:
        return corners_by_line(read_any_text(path), numbers)
    except OSError:
        return {}


def _segmentation(
    values: list[float] | None, size: tuple[int, int], where: str, faults: Faults
) -> dict[str, list[list[float]]]:
    """The polygon of a row in pixels. A box cx cy w h is a rectangle."""
    if values is None:
        return {}
    if len(values) == 4:
        cx, cy, w, h = values
        faults.add("boxes among polygons got a rectangle as their mask", where)
        x0, y0, x1, y1 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        values = [x0, y0, x1, y0, x1, y1, x0, y1]
    height, width = size
    return {"segmentation": [[value * (height if i % 2 else width) for i, value in enumerate(values)]]}


def _line(path: str, number: int) -> str:
    try:
        return read_any_text(path).splitlines()[number - 1].strip()
    except (OSError, IndexError):
        return ""


def _looks_like(files: list[_File], form: Form) -> str:
    """The unit that rows beyond 0..1 seem to have, from all rows together, as the end of a sentence."""
    shapes = [(boxes_of(one.labels.rows, form), one.size) for one in files if len(one.labels.rows)]
    boxes = np.concatenate([np.zeros((0, 4)), *(boxes for boxes, _ in shapes)])
    out_of_range = np.abs(boxes).max(1, initial=0) > _LARGEST_NORMALIZED
    if not out_of_range.any():
        return ""
    ends = boxes[:, :2] + boxes[:, 2:] / 2
    share = f"; {int(out_of_range.sum())} of {len(boxes)} rows have numbers beyond 1"
    sides = np.concatenate([np.broadcast_to(size[::-1], (len(one), 2)) for one, size in shapes])
    percent, pixels = ends.max() <= 100.5, (ends <= sides + 1).all()
    if out_of_range.mean() <= 0.5 or not (percent or pixels):
        return share
    kinds = [kind for kind, fits in (("percent", percent), ("pixels", pixels)) if fits]
    return f"{share}, as if they were {' or '.join(kinds)}: divide them by " + (
        "100" if kinds == ["percent"] else "the image's width and height"
    )
