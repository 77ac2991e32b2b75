"""`VocDataset`: Pascal VOC data sets, with an XML file of boxes for each image (Everingham et al., 2010)."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detr_jax.data.annotated import AnnotatedFolder
from detr_jax.data.annotation_checks import check_instances
from detr_jax.data.image_folders import count_unread, images_in, list_folder, suffix_of
from detr_jax.data.images import ExifRule, read_size
from detr_jax.data.layouts import WHOLE, Layout, in_order
from detr_jax.data.source import DataError, Faults
from detr_jax.data.text_files import read_lines
from detr_jax.data.voc_corners import counted_from_one
from detr_jax.data.voc_layout import (
    Descriptions,
    Entry,
    find_folders,
    find_split_folders,
    found_entries,
    list_file_folder,
    list_files,
    listed_entries,
    split_folders,
)
from detr_jax.data.voc_xml import Description, VocObject
from detr_jax.files import open_regular
from detr_jax.wording import counted

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The official classes. The label is the position in this tuple."""

_MAX_SWAPPED = 0.1  # with this fraction of boxes in the wrong order of corners, the numbers are not corners


class VocDataset(AnnotatedFolder):
    """Images and the XML files that describe them.

    There are two layouts. In the official layout, ``ImageSets/Main/SPLIT.txt`` lists names, the images are in
    ``JPEGImages/``, and the XML files are in ``Annotations/``. Labelling tools use one folder per split. It holds
    images with XML files of the same names next to them, or in two folders such as ``images`` and ``annotations``. In
    this layout, an image without an XML file has no objects. Sub-folders and links are followed.

    Labels are positions in `VOC_CLASSES` if all class names of all splits are among them. Otherwise they are positions
    in the sorted list of all class names. Corners are either pixels, counted from 1 and inclusive, or edges, counted
    from 0; `counted_from_one` decides from all corners. Objects marked difficult are not trained on, and the evaluation
    ignores them in the same way as crowds.

    Args:
      root: the folder of ``ImageSets``, or of the splits.
      split: for example "train", "val", "trainval" or "test". "." or "all" if the data set has no splits.
      strict: raise on the first error. If False, faulty files and objects are dropped and recorded in ``faults``.
      skip: drop images that have neither a size in their XML file nor a readable header, and record them in ``faults``.
      one_based: whether corners are pixels counted from 1 (True) or edges (False). None: all corners decide.
      exif: see `detr_jax.data.images.decode`.
      max_level: see `detr_jax.data.images.decode`.

    Raises:
      DataError: a folder or list is missing or, if ``strict``, a file or an object in it is wrong.
    """

    labels_follow_names = True

    def __init__(
        self,
        root: str | Path,
        split: str,
        *,
        strict: bool = True,
        skip: bool = False,
        one_based: bool | None = None,
        exif: ExifRule = "auto",
        max_level: float = 0,
    ):
        root = Path(root)
        faults = Faults(f"{root} ({split})", skip=skip)
        read = Descriptions()
        entries = _entries(root, split, read, faults)
        for path in _all_descriptions(root):
            read[path]  # the classes and the kind of corners follow from the files of all splits
        categories = _categories(read.read.values())
        from_one, reason = _corners(read.read.values(), one_based, faults)
        meaning = "pixels, counted from 1 and included" if from_one else "edges, counted from 0"
        self.understood = f"corners are {meaning} ({reason})"
        form: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": label, "name": name} for label, name in categories.items()],
        }
        label_of = {name: label for label, name in categories.items()}
        for image_id, (image, xml) in enumerate(entries, start=1):
            description = Description() if xml is None else read[xml]
            for kind, sentence in description.faults:
                faults.error(kind, sentence)
            for kind, name in description.oddities:
                faults.add(kind, name)
            size = _size(image, description, faults, rotate=exif != "ignore")
            if size is None:
                continue
            form["images"].append({"id": image_id, "file_name": image, "height": size[0], "width": size[1]})
            first = len(form["annotations"]) + 1
            for number, one in enumerate(description.objects, start=first):
                x, y, w, h = _bbox(one, from_one)
                form["annotations"].append(
                    {
                        "id": number,
                        "where": f"{xml} object {one.number}",
                        "image_id": image_id,
                        "category_id": label_of[one.name],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": int(one.difficult),
                    }
                )
        super().__init__(check_instances(form, faults), strict=strict, exif=exif, max_level=max_level)


def recognise_voc(root: Path) -> Layout | None:
    """The layout of a Pascal VOC data set in a folder, or None if the folder has none."""
    if not root.is_dir() or not any(_is_annotation(path) for path in _first(_all_descriptions(root), 3)):
        return None
    if (lists := list_file_folder(root)) is not None:
        counts = {name: len(lines) for name, path in list_files(lists).items() if (lines := _split_lines(name, path))}
        summaries = {name: counted(count, "image") for name, count in counts.items()}
        where = f"VOC by {lists.relative_to(root).as_posix()}"
    else:
        by_split = {name: find_folders(*folders) for name, folders in split_folders(root).items()}
        by_split = {name: folders for name, folders in by_split.items() if images_in(folders.images)}
        if not by_split:
            by_split = {WHOLE: find_folders(root, root)}
        counts = {name: len(images_in(folders.images)) for name, folders in by_split.items()}
        summaries = {
            name: f"{os.path.relpath(folders.images.path, root)} ({counted(counts[name], 'image')}, "
            f"{len(folders.xml_files())} XML files in {os.path.relpath(folders.descriptions.path, root)})"
            for name, folders in by_split.items()
        }
        where = "VOC by XML files"
    order = in_order(name for name, count in counts.items() if count)
    line = "; ".join(f"{name}: {summaries[name]}" for name in order)
    return (
        Layout("voc", {name: (root, name) for name in order}, f"{root} is read as {where} ({line})") if order else None
    )


def _entries(root: Path, split: str, read: Descriptions, faults: Faults) -> list[Entry]:
    if (lists := list_file_folder(root)) is not None:
        return listed_entries(root, lists, split, read, faults)
    folders = find_split_folders(root, split)
    count_unread(
        {folders.images.path: folders.images, folders.descriptions.path: folders.descriptions}.values(), faults
    )
    return found_entries(folders, read, faults)


def _all_descriptions(root: Path) -> Iterator[str]:
    """The paths of the XML files of all splits."""
    official = list_file_folder(root) is not None
    folder = find_folders(root, root).descriptions if official else list_folder(root)
    return (os.path.join(folder.path, name) for name in folder.files if suffix_of(name) == ".xml")


def _first(paths: Iterator[str], number: int) -> Iterator[str]:
    return (path for _, path in zip(range(number), paths, strict=False))


def _is_annotation(path: str) -> bool:
    """Whether the beginning of an XML file is of an annotation of VOC."""
    try:
        with open_regular(path) as file:
            return b"<annotation" in file.read(2048).replace(b"\0", b"").replace(b"<annotations", b"")
    except OSError:
        return False


def _split_lines(name: str, path: Path) -> list[str]:
    """The lines of the list of a split. It is empty for the list of a class, whose lines end with 1, 0 or -1."""
    try:
        lines = read_lines(path)
    except OSError:
        return []
    is_class_list = "_" in name and all(
        line.split()[-1] in ("1", "0", "-1") and len(line.split()) > 1 for line in lines
    )
    return [] if is_class_list else lines


def _categories(descriptions: Iterable[Description]) -> dict[int, str]:
    names = {one.name for description in descriptions for one in description.objects}
    return dict(enumerate(VOC_CLASSES if names <= set(VOC_CLASSES) else sorted(names)))


def _corners(descriptions: Iterable[Description], one_based: bool | None, faults: Faults) -> tuple[bool, str]:
    """Whether corners count from 1, and the reason. Numbers that are not corners are an error."""
    objects = [one for description in descriptions for one in description.objects]
    swapped = sum(one.swapped for one in objects)
    if swapped >= 3 and swapped >= _MAX_SWAPPED * len(objects):
        faults.error(
            "data sets whose boxes are not corners",
            f"{swapped} of {len(objects)} boxes have xmin above xmax or ymin above ymax, as if xmax and ymax were "
            "width and height: write xmin, ymin, xmax and ymax",
        )
    if one_based is not None:
        return one_based, f"data.sources.voc.one_based is {str(one_based).lower()}"
    return counted_from_one(objects)


def _bbox(one: VocObject, from_one: bool) -> tuple[float, float, float, float]:
    """The box of an object, xywh in pixels from the edge of the image."""
    x0, y0, x1, y1 = one.corners
    if from_one and not one.from_polygon:
        x0, y0 = x0 - 1, y0 - 1
    return x0, y0, x1 - x0, y1 - y0


def _size(image: str, description: Description, faults: Faults, *, rotate: bool) -> tuple[int, int] | None:
    """The (height, width) of an image in pixels, from its XML file or else from its header. None if it is unknown."""
    if description.size is not None:
        if os.path.isfile(image):
            return description.size
        faults.unopened("images that are missing", f"The image file {image} does not exist, although it is listed")
        return None
    try:
        return read_size(Path(image), rotate=rotate)
    except DataError as error:
        faults.unopened("images without a readable header", str(error).rstrip("."))
        return None
