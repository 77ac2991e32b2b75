"""Data sets in the layout of Ultralytics YOLO: ``data.yaml``, folders of images, and a text file of boxes for each."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from detr_jax.data.annotated import AnnotatedFolder
from detr_jax.data.annotation_checks import check_instances
from detr_jax.data.annotation_rows import shown
from detr_jax.data.images import IMAGE_SUFFIXES, read_size
from detr_jax.data.source import DataError, Faults

_THREADS = 8  # they wait for files more than they compute
_LARGEST_NORMALIZED = 2.0  # beyond it, coordinates are surely pixels


class YoloDataset(AnnotatedFolder):
    """Images and labels that a ``data.yaml`` names.

    Its ``train`` and ``val`` name a folder, a text file that lists images, or several of these, relative to ``path``.
    The labels of ``.../images/a.jpg`` are in ``.../labels/a.txt``, a row an object: the class and cx cy w h, or the
    class and the corners of a polygon, of which the bounding box is taken, all in 0..1 of the image as it is displayed
    (with its EXIF rotation). An image without such a file has no objects. Labels are the keys, or the positions, of
    ``names``.

    Args:
      data_file: the ``data.yaml``.
      split: "train" or "val".
      strict: whether wrong rows end here, or are left out to be reported.
      skip: whether images without a readable header are left out, and counted in ``faults``.

    Raises:
      DataError: a file or folder is missing, ``data.yaml`` is damaged, or, where ``strict``, a row is wrong or, without
        ``skip``, an image has no readable header.
    """

    boxes_as_displayed = True

    def __init__(self, data_file: str | Path, split: str, *, strict: bool = True, skip: bool = False):
        data_file = Path(data_file)
        content = _read_yaml(data_file)
        names = _class_names(content, data_file)
        images = sorted(_listed_images(content, data_file, split))
        if not images:
            raise DataError(f"{data_file} names no image under {split!r}: give a folder with images.")

        faults = Faults(f"{data_file} ({split})", skip=skip)
        form: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": label, "name": name} for label, name in names.items()],
        }
        with ThreadPoolExecutor(_THREADS) as threads:
            for image_id, (path, read) in enumerate(zip(images, threads.map(_read, images), strict=True), start=1):
                if read.size is None:
                    faults.unopened("images without a readable header", read.fault)
                    continue
                if read.fault:
                    faults.error(
                        "label files that cannot be read", f"{_label_file(path)} cannot be read ({read.fault})"
                    )
                height, width = read.size
                form["images"].append({"id": image_id, "file_name": str(path), "height": height, "width": width})
                for where, label, (cx, cy, w, h) in _objects(read.rows, _label_file(path), faults):
                    form["annotations"].append(
                        {
                            "id": len(form["annotations"]) + 1,
                            "where": where,
                            "image_id": image_id,
                            "category_id": label,
                            "bbox": [(cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height],
                            "area": max(w * width, 0) * max(h * height, 0),
                            "iscrowd": 0,
                        }
                    )
        super().__init__(check_instances(form, faults), strict=strict)


class _Read(NamedTuple):
    """What the files of an image say."""

    size: tuple[int, int] | None
    """(height, width) in pixels; None where the header cannot be read."""
    rows: str
    fault: str = ""


def _read(path: Path) -> _Read:
    try:
        size = read_size(path, rotate=True)
    except DataError as error:
        return _Read(None, "", str(error).rstrip("."))
    try:
        return _Read(size, _label_file(path).read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return _Read(size, "")
    except OSError as error:
        return _Read(size, "", str(error))


def _label_file(image: Path) -> Path:
    """The last folder called images becomes labels; without one, the labels are beside the image."""
    parts = list(image.parts)
    for i in reversed(range(len(parts) - 1)):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _objects(rows: str, path: Path, faults: Faults) -> Iterator[tuple[str, int, tuple[float, float, float, float]]]:
    """Where it stands, label and normalised cxcywh of each object."""
    seen: set[str] = set()
    for number, row in enumerate(rows.splitlines(), start=1):
        if not row.strip():
            continue
        where = f"{path} row {number}"
        try:
            label, *points = map(float, row.split())
        except ValueError:
            label, points = math.nan, []
        if not all(map(math.isfinite, (label, *points))) or not label.is_integer() or not _is_shape(len(points)):
            faults.error(
                "rows that are no label",
                f"{where} is {shown(row)}, which must be a class, then cx cy w h or three or more corners x y",
            )
        elif any(abs(value) > _LARGEST_NORMALIZED for value in points):
            faults.error(
                "rows that are not normalised",
                f"{where} is {shown(row)}, which must be in 0..1 of the image, not in pixels",
            )
        elif row.strip() in seen:
            faults.add("rows that say the same as another were dropped", where)
        else:
            seen.add(row.strip())
            yield where, int(label), _box(points)


def _is_shape(numbers: int) -> bool:
    return numbers == 4 or (numbers >= 6 and numbers % 2 == 0)


def _box(points: list[float]) -> tuple[float, float, float, float]:
    """cxcywh of a box, or of the corners of a polygon."""
    if len(points) == 4:
        cx, cy, w, h = points
        return cx, cy, w, h
    x0, x1, y0, y1 = min(points[::2]), max(points[::2]), min(points[1::2]), max(points[1::2])
    return (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"The file {path} does not exist: set data.root and data.yolo_file to where the data.yaml is."
        ) from None
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DataError(f"The file {path} is not YAML ({error.problem}{line}).") from None
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise DataError(f"The file {path} cannot be read as YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise DataError(f"The file {path} holds no fields: a data.yaml has train, val and names.")
    return content


def _class_names(content: dict[str, Any], path: Path) -> dict[int, str]:
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names or not all(str(label).isdecimal() for label in names):
        raise DataError(
            f"{path} has names={shown(names)}: they must be a list of class names, or one by number (0: person)."
        )
    if isinstance(count := content.get("nc", len(names)), int) and count != len(names):
        raise DataError(f"{path} has nc={count}, but {len(names)} names: correct the one that is wrong.")
    return {int(label): str(name) for label, name in names.items()}


def _listed_images(content: dict[str, Any], path: Path, split: str) -> list[Path]:
    entries = content.get(split) or (content.get("validation") if split == "val" else None)
    entries = entries if isinstance(entries, list) else [entries]
    if not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{path} has {split}={shown(content.get(split))}: it must be a folder or file of images.")
    images: dict[Path, None] = {}  # in order, each once
    for entry in entries:
        found = _resolved(entry, content, path, split)
        if found.is_dir():
            images |= dict.fromkeys(file for file in found.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        else:
            lines = found.read_text(encoding="utf-8", errors="replace").splitlines()
            images |= dict.fromkeys(found.parent / line.strip() for line in lines if line.strip())
    return list(images)


def _resolved(entry: str, content: dict[str, Any], path: Path, split: str) -> Path:
    """A folder or file that ``data.yaml`` names: relative to ``path``, else to the file itself, as exports have it."""
    bases = [path.parent / str(content.get("path") or "."), path.parent]
    without_parent = entry.removeprefix("../")  # exports of Roboflow say ../train/images of train/images
    for candidate in [base / name for name in (entry, without_parent) for base in bases]:
        if candidate.exists():
            return candidate
    raise DataError(
        f"{path} has {split}: {entry}, and there is no {bases[0] / entry}: correct path or {split} in that file."
    )
