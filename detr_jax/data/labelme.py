"""`LabelmeDataset`: images with JSON files of labelme (https://github.com/wkentaro/labelme)."""

import base64
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from detr_jax.data.annotated import AnnotatedFolder
from detr_jax.data.annotation_checks import check_instances
from detr_jax.data.annotation_rows import shown
from detr_jax.data.image_folders import count_unread, images_in, list_folder, stem_of, suffix_of
from detr_jax.data.images import UNREADABLE, ExifRule, check_pixels, open_picture, read_size
from detr_jax.data.layouts import WHOLE, Layout, in_order, meaning
from detr_jax.data.masks import as_text, encoded
from detr_jax.data.source import DataError, Faults
from detr_jax.data.text_files import posix_path, read_any_text
from detr_jax.files import LARGEST_ANNOTATIONS, open_regular
from detr_jax.wording import counted

_PROBES = 3  # JSON files that are read to recognise a folder
_HEAD = 2**16  # bytes that show whether a JSON file is of labelme; other files may be large
_CORNERS_OF_CIRCLE = 64  # of the polygon that stands for a circle
_WITHOUT_BOX = ("point", "points")  # types of shapes


class LabelmeDataset(AnnotatedFolder):
    """The images of a folder and its sub-folders, and the JSON files of the same names.

    The box of a shape is the bounding box of its points: two corners, a polygon, or the centre of a circle and a point
    on it. Single points are ignored and counted. An image without a JSON file has no objects. Labels are positions in
    the sorted list of the class names of all splits. Boxes belong to the image with its EXIF rotation, as labelme shows
    it.

    Args:
      root: the folder of the data set.
      split: the sub-folder of the split. `WHOLE` stands for the root itself.
      strict: raise on the first error. If False, faulty files and shapes are dropped and recorded in ``faults``.
      skip: drop images without a readable header, and record them in ``faults``.
      exif: see `detr_jax.data.images.decode`.
      max_level: see `detr_jax.data.images.decode`.
      masks: read the shapes as masks: polygons, rectangles, circles and labelme's masks.

    Raises:
      DataError: the folder is missing or, if ``strict``, a file or shape in it is wrong.
    """

    boxes_as_displayed = True
    labels_follow_names = True

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        strict: bool = True,
        skip: bool = False,
        exif: ExifRule = "auto",
        max_level: float = 0,
        masks: bool = False,
    ):
        faults = Faults(f"{root} ({split})", skip=skip)
        folder = list_folder(root if split == WHOLE else root / split)
        count_unread([folder], faults)
        described = {path: one for path in _json_files(root) if (one := _read(path, faults)) is not None}
        names = sorted({shape.label for one in described.values() for shape in one.shapes})
        label_of = {name: label for label, name in enumerate(names)}
        form: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": label, "name": name} for name, label in label_of.items()],
        }
        paths = [os.path.join(folder.path, name) for name in images_in(folder)]
        files = _files_of(paths, {path: one for path, one in described.items() if path.startswith(folder.path)}, faults)
        for image_id, path in enumerate(paths, start=1):
            try:
                height, width = read_size(Path(path), rotate=exif != "ignore")
            except DataError as error:
                faults.unopened("images without a readable header", str(error).rstrip("."))
                continue
            form["images"].append({"id": image_id, "file_name": path, "height": height, "width": width})
            for where, label, box, shape in _boxes(files.get(path), described, faults):
                form["annotations"].append(
                    {
                        "id": len(form["annotations"]) + 1,
                        "where": where,
                        "image_id": image_id,
                        "category_id": label_of[label],
                        "bbox": box,
                        "area": max(box[2], 0) * max(box[3], 0),
                        "iscrowd": 0,
                        **(_segmentation(shape, (height, width), where, faults) if masks else {}),
                    }
                )
        super().__init__(check_instances(form, faults, masks=masks), strict=strict, exif=exif, max_level=max_level)


def recognise_labelme(root: Path) -> Layout | None:
    """The layout of a folder with images and JSON files of labelme, or None if it has none."""
    files = _json_files(root)
    ignored = Faults(str(root))
    if not any(_read(path, ignored) is not None for path in files[:_PROBES]):
        return None
    below = [child.name for child in root.iterdir() if child.is_dir() and meaning(child.name)]
    counts = {name: len(images_in(list_folder(root / name))) for name in below}
    counts = {name: count for name, count in counts.items() if count} or {WHOLE: len(images_in(list_folder(root)))}
    order = in_order(counts)
    line = "; ".join(f"{name}: {counted(counts[name], 'image')}" for name in order)
    return Layout("labelme", {name: (root, name) for name in order}, f"{root} is read as labelme's JSON files ({line})")


class _Shape(msgspec.Struct):
    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = "polygon"
    mask: str | None = None


class _File(msgspec.Struct):
    shapes: list[_Shape]
    imagePath: str = ""


class _Box(NamedTuple):
    where: str
    """The file and the number of the shape, for messages."""
    label: str
    """The name of the class."""
    bbox: list[float]
    """xywh in pixels."""
    shape: _Shape


def _json_files(root: Path) -> list[str]:
    folder = list_folder(root)
    return [os.path.join(folder.path, name) for name in folder.files if suffix_of(name) == ".json"]


def _read(path: str, faults: Faults) -> _File | None:
    """The shapes of a JSON file, or None for a JSON file of another kind. A damaged file is counted as an error."""
    try:
        with open_regular(path) as file:
            if b'"shapes"' not in file.read(_HEAD).replace(b"\0", b""):  # without null bytes, UTF-16 matches too
                return None
        return msgspec.json.decode(read_any_text(path, LARGEST_ANNOTATIONS), type=_File)
    except (OSError, ValueError, RecursionError, msgspec.DecodeError) as error:
        faults.error("JSON files that cannot be read", f"{path} is not a labelme file ({error})")
        return None


def _files_of(paths: list[str], described: dict[str, _File], faults: Faults) -> dict[str, str]:
    """The JSON file of each image. It gives the path of the image, or has the same name."""
    by_path = {os.path.normpath(path): path for path in paths}
    by_stem = {stem_of(path): path for path in paths}
    found: dict[str, str] = {}
    for path, one in described.items():
        named = os.path.normpath(os.path.join(os.path.dirname(path), posix_path(one.imagePath)))
        image = by_path.get(named) or by_stem.get(stem_of(path))
        if image is None:
            faults.add("JSON files whose image does not exist were ignored", f"{path}, image {shown(one.imagePath)}")
        elif image in found:
            faults.error("images with two JSON files", f"{image} has {found[image]} and {path}: remove one of them")
        else:
            found[image] = path
    if missing := [path for path in paths if path not in found]:
        faults.note_all("images have no JSON file, so they have no objects", len(missing), missing)
    return found


def _boxes(path: str | None, described: dict[str, _File], faults: Faults) -> Iterator[_Box]:
    for number, shape in enumerate(described[path].shapes if path is not None else (), start=1):
        where = f"{path} shape {number}"
        if shape.shape_type in _WITHOUT_BOX or not shape.points:
            faults.add("shapes without a box were ignored", f"{where}, a {shape.shape_type}")
            continue
        xs, ys = zip(*shape.points, strict=True)
        x0, y0, x1, y1 = min(xs), min(ys), max(xs), max(ys)
        if shape.shape_type == "circle" and len(shape.points) == 2:
            (x, y), rim = shape.points
            radius = math.dist((x, y), rim)
            x0, y0, x1, y1 = x - radius, y - radius, x + radius, y + radius
        yield _Box(where, shape.label, [x0, y0, x1 - x0, y1 - y0], shape)


def _segmentation(shape: _Shape, size: tuple[int, int], where: str, faults: Faults) -> dict[str, Any]:
    """The mask of a shape in COCO's form. Shapes without an area have none."""
    points = shape.points
    if shape.shape_type == "mask" and shape.mask:
        return _pixels(shape, size, where, faults)
    if shape.shape_type == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    elif shape.shape_type == "circle" and len(points) == 2:
        (x, y), rim = points
        radius = math.dist((x, y), rim)
        angles = (2 * math.pi * i / _CORNERS_OF_CIRCLE for i in range(_CORNERS_OF_CIRCLE))
        points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    elif shape.shape_type not in (None, "polygon"):
        return {}
    return {"segmentation": [[value for point in points for value in point]]}


def _pixels(shape: _Shape, size: tuple[int, int], where: str, faults: Faults) -> dict[str, Any]:
    """The run lengths of labelme's mask, a PNG file of the pixels within its box."""
    assert shape.mask is not None
    try:
        with open_picture(base64.b64decode(shape.mask)) as picture:
            check_pixels(picture, "It")
            inside = np.asarray(picture.convert("L")) > 0
    except UNREADABLE as error:
        faults.error("masks that cannot be read", f"{where} has a mask that is not a PNG file ({error})")
        return {}
    left, top = (math.floor(min(values)) for values in zip(*shape.points, strict=True))
    bitmap = np.zeros(size, bool)
    bottom, right = max(top + len(inside), 0), max(left + inside.shape[1], 0)
    target = bitmap[max(top, 0) : bottom, max(left, 0) : right]
    target[:] = inside[max(-top, 0) :, max(-left, 0) :][: target.shape[0], : target.shape[1]]
    return {"segmentation": as_text(encoded(bitmap))}
