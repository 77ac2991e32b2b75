"""Data sets in the layout of Pascal VOC: an XML file of boxes for each image (Everingham et al., 2010)."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

from detr_jax.data.annotated import AnnotatedFolder
from detr_jax.data.annotation_checks import check_instances
from detr_jax.data.annotation_rows import shown
from detr_jax.data.images import IMAGE_SUFFIXES, read_size
from detr_jax.data.source import DataError, Faults

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The official classes; the position is the label."""


class VocDataset(AnnotatedFolder):
    """Images and the XML files that describe them.

    Two layouts are read. The official one: ``ImageSets/Main/SPLIT.txt`` lists names, of which the images are in
    ``JPEGImages/`` and the descriptions in ``Annotations/``. And the one of labelling tools: the folder ``SPLIT`` (or
    "." for the root itself) holds images with XML files of the same names beside them, or in those two folders; there,
    an image without an XML file has no objects.

    Labels are positions in `VOC_CLASSES` where all names in the data set, over all splits, are among these, else in the
    sorted list of all names. Corners in the files are pixels, counted from 1 and included. Objects marked difficult are
    not trained on, and the evaluation ignores them as it does crowds.

    Args:
      root: the folder of ``ImageSets``, or of the splits.
      split: such as "train", "val", "trainval" or "test".
      strict: whether wrong files end here, or are left out to be reported.
      skip: whether images that have neither a size in their XML file nor a readable header are left out, and counted in
        ``faults``.

    Raises:
      DataError: a folder or list is missing or, where ``strict``, a file or an object in it is wrong.
    """

    def __init__(self, root: str | Path, split: str, *, strict: bool = True, skip: bool = False):
        root = Path(root)
        faults = Faults(f"{root} ({split})", skip=skip)
        entries = _official_entries(root, split) or _plain_entries(root, split)
        read = {path: _read(path) for path in sorted(_all_descriptions(root))}
        categories = _categories(read.values())
        label_of = {name: label for label, name in categories.items()}

        form: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": label, "name": name} for label, name in categories.items()],
        }
        for image_id, (image, xml) in enumerate(entries, start=1):
            description = _Description() if xml is None else read.get(xml) or _read(xml)
            for kind, sentence in description.faults:
                faults.error(kind, sentence)
            size = description.size or _size_in_header(image, faults)
            if size is None:
                continue
            form["images"].append({"id": image_id, "file_name": str(image), "height": size[0], "width": size[1]})
            for thing in description.objects:
                form["annotations"].append(
                    {
                        "id": len(form["annotations"]) + 1,
                        "where": f"{xml} object {thing.number}",
                        "image_id": image_id,
                        "category_id": label_of[thing.name],
                        "bbox": list(thing.bbox),
                        "area": max(thing.bbox[2], 0) * max(thing.bbox[3], 0),
                        "iscrowd": int(thing.difficult),
                    }
                )
        super().__init__(check_instances(form, faults), strict=strict)


class _Thing(NamedTuple):
    """An object of a description."""

    number: int
    name: str
    bbox: tuple[float, float, float, float]
    """xywh in pixels, counted from the image's edge."""
    difficult: bool


class _Description(NamedTuple):
    """What an XML file says."""

    size: tuple[int, int] | None = None
    """(height, width) in pixels, where it is given."""
    objects: tuple[_Thing, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()


def _official_entries(root: Path, split: str) -> list[tuple[Path, Path | None]]:
    """Image and description of each name in the list of a split; none where there are no such lists."""
    lists = root / "ImageSets" / "Main"
    if not lists.is_dir():
        return []
    try:
        lines = (lists / f"{split}.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        there = ", ".join(sorted(file.stem for file in lists.glob("*.txt"))) or "none"
        raise DataError(
            f"{root} has no split {split!r} (ImageSets/Main has {there}): set data.train_split and data.val_split."
        ) from None
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise DataError(f"The list {lists / split}.txt is empty: at least one image is needed.")
    images = _images_by_name(root / "JPEGImages")
    return [
        (images.get(name, root / "JPEGImages" / f"{name}.jpg"), root / "Annotations" / f"{name}.xml") for name in names
    ]


def _plain_entries(root: Path, split: str) -> list[tuple[Path, Path | None]]:
    """All images of the folder of a split, with their descriptions where there are any."""
    folder = root / split
    if not folder.is_dir():
        there = ", ".join(sorted(child.name for child in root.iterdir() if child.is_dir())) or "none"
        raise DataError(
            f"{root} has neither ImageSets/Main nor a folder {split} (folders: {there}): set data.train_split and "
            'data.val_split, "." for the folder itself.'
        )
    image_folder = folder / "JPEGImages" if (folder / "JPEGImages").is_dir() else folder
    xml_folder = folder / "Annotations" if (folder / "Annotations").is_dir() else folder
    descriptions = {file.stem: file for file in xml_folder.glob("*.xml")}
    images = _images_by_name(image_folder)
    if not images:
        raise DataError(f"The folder {image_folder} holds no image: at least one is needed.")
    names = sorted(images.keys() | descriptions.keys())
    return [(images.get(name, image_folder / f"{name}.jpg"), descriptions.get(name)) for name in names]


def _images_by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"The image folder {folder} does not exist: give data.root as the folder that holds it.")
    return {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in IMAGE_SUFFIXES}


def _all_descriptions(root: Path) -> list[Path]:
    """Those of every split, which all have their say in the list of classes."""
    official = root / "Annotations"
    return list(official.glob("*.xml") if (root / "ImageSets").is_dir() else root.rglob("*.xml"))


def _categories(descriptions: Any) -> dict[int, str]:
    names = {thing.name for description in descriptions for thing in description.objects}
    return dict(enumerate(VOC_CLASSES if names <= set(VOC_CLASSES) else sorted(names)))


def _read(path: Path) -> _Description:
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ValueError, LookupError, ElementTree.ParseError, RecursionError) as error:
        return _Description(
            faults=(("annotation files that cannot be read as XML", f"{path} cannot be read as XML ({error})"),)
        )
    objects: list[_Thing] = []
    faults: list[tuple[str, str]] = []
    for number, element in enumerate(root.findall("object"), start=1):
        name = (element.findtext("name") or "").strip()
        if not name:
            faults.append(("objects without a name", f"{path} object {number} has no name, which must be its class"))
            continue
        texts = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        corners = [_number(text) for text in texts]
        if not all(map(math.isfinite, corners)):
            said = f"{path} object {number} has bndbox={shown(texts)}"
            faults.append(
                ("boxes that are not four numbers", f"{said}, which must be xmin, ymin, xmax and ymax in pixels")
            )
            continue
        xmin, ymin, xmax, ymax = corners
        bbox = (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1)
        objects.append(_Thing(number, name, bbox, _number(element.findtext("difficult")) == 1))
    height, width = (_number(root.findtext(f"size/{side}")) for side in ("height", "width"))
    given = height >= 1 and width >= 1 and math.isfinite(height) and math.isfinite(width)
    return _Description((int(height), int(width)) if given else None, tuple(objects), tuple(faults))


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _size_in_header(path: Path, faults: Faults) -> tuple[int, int] | None:
    try:
        return read_size(path, rotate=True)
    except DataError as error:
        faults.unopened("images without a readable header", str(error).rstrip("."))
        return None
