"""Write random data sets in the way of annotation tools.

Each writer follows the documentation of its tool. It gets a root and the images of each split. It returns the number of
images of each split, by the tool's names of the splits.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

NAMES = ["stop sign", "no", "äpfel", "zebra"]


class Drawn(NamedTuple):
    """A random image and its boxes."""

    name: str  # the stem of its file
    size: tuple[int, int]  # (width, height)
    boxes: list[tuple[int, int, int, int, int]]  # label, x0, y0, x1, y1; edges in pixels


def draw(rng: np.random.Generator, number: int, prefix: str) -> list[Drawn]:
    """``number`` images of random sizes with random boxes. Their names begin with ``prefix``."""
    drawn = []
    for index in range(number):
        width, height = (int(side) for side in rng.integers(20, 60, 2))
        boxes = []
        for _ in range(rng.integers(1, 4)):
            x0, y0 = int(rng.integers(0, width - 6)), int(rng.integers(0, height - 6))
            x1, y1 = int(rng.integers(x0 + 3, width)), int(rng.integers(y0 + 3, height))
            boxes.append((int(rng.integers(len(NAMES))), x0, y0, x1, y1))
        drawn.append(Drawn(f"{prefix}{index}", (width, height), boxes))
    return drawn


def _image(path: Path, one: Drawn) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", one.size, (90, 120, 150)).save(path)


def _text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def _rows(one: Drawn) -> str:
    width, height = one.size
    return "".join(
        f"{label} {(x0 + x1) / 2 / width:.6f} {(y0 + y1) / 2 / height:.6f} {(x1 - x0) / width:.6f} "
        f"{(y1 - y0) / height:.6f}\n"
        for label, x0, y0, x1, y1 in one.boxes
    )


def _xml(one: Drawn, filename: str, corner: Callable[[int, bool], str]) -> str:
    """The text of a VOC file. ``corner(edge, first)`` writes an edge; ``first`` is set for xmin and ymin."""
    tree = ElementTree.Element("annotation")
    ElementTree.SubElement(tree, "filename").text = filename
    size = ElementTree.SubElement(tree, "size")
    for side, value in zip(("width", "height", "depth"), (*one.size, 3), strict=True):
        ElementTree.SubElement(size, side).text = str(value)
    for label, *edges in one.boxes:
        thing = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(thing, "name").text = NAMES[label]
        ElementTree.SubElement(thing, "difficult").text = "0"
        box = ElementTree.SubElement(thing, "bndbox")
        for side, edge, first in zip(("xmin", "ymin", "xmax", "ymax"), edges, (1, 1, 0, 0), strict=True):
            ElementTree.SubElement(box, side).text = corner(edge, bool(first))
    return ElementTree.tostring(tree, encoding="unicode")


def from_one(edge: int, first: bool) -> str:
    """A corner as a pixel that is counted from 1 and included."""
    return str(edge + first)


def edges(edge: int, first: bool) -> str:
    """A corner as an edge that is counted from 0, with fractions."""
    return str(float(edge) + 0.25 * first)


Splits = dict[str, list[Drawn]]


def ultralytics(root: Path, splits: Splits, file: str = "data.yaml") -> dict[str, int]:
    for split, images in splits.items():
        for one in images:
            _image(root / "images" / split / f"{one.name}.jpg", one)
            _text(root / "labels" / split / f"{one.name}.txt", _rows(one))
    names = "".join(f"  {label}: {name}\n" for label, name in enumerate(NAMES))
    _text(
        root / file,
        f"path: ../datasets/{root.name}\ntrain: images/train\nval: images/val\ntest:\nnames:\n{names}"
        "download: https://example.org/set.zip\n",
    )
    return {split: len(images) for split, images in splits.items()}


def ultralytics_other_file(root: Path, splits: Splits) -> dict[str, int]:
    return ultralytics(root, splits, "my set.yml")


def roboflow_yolo(root: Path, splits: Splits) -> dict[str, int]:
    folders = {"train": "train", "val": "valid"}
    for split, images in splits.items():
        for one in images:
            _image(root / folders[split] / "images" / f"{one.name}_jpg.rf.{'0' * 8}.jpg", one)
            _text(root / folders[split] / "labels" / f"{one.name}_jpg.rf.{'0' * 8}.txt", _rows(one))
    _text(root / "README.roboflow.txt", "a set\n")
    _text(
        root / "data.yaml",
        f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: {len(NAMES)}\nnames: {NAMES}\n\n"
        "roboflow:\n  workspace: w\n  version: 1\n",
    )
    return {split: len(images) for split, images in splits.items()}


def label_studio_yolo(root: Path, splits: Splits) -> dict[str, int]:
    images = [one for some in splits.values() for one in some]
    for one in images:
        _image(root / "images" / f"{one.name}.png", one)
        _text(root / "labels" / f"{one.name}.txt", _rows(one))
    _text(root / "classes.txt", "".join(f"{name}\n" for name in NAMES))
    _text(root / "notes.json", '{"categories": [], "info": {"year": 2024}}')
    return {"all": len(images)}


def label_img_yolo(root: Path, splits: Splits) -> dict[str, int]:
    images = [one for some in splits.values() for one in some]
    for one in images:
        _image(root / f"{one.name}.JPG", one)
        _text(root / f"{one.name}.txt", _rows(one))
    _text(root / "classes.txt", "".join(f"{name}\n" for name in NAMES))
    return {"all": len(images)}


def cvat_yolo(root: Path, splits: Splits) -> dict[str, int]:
    subsets = {"train": "train", "val": "valid"}
    for split, images in splits.items():
        subset = subsets[split]
        for one in images:
            _image(root / f"obj_{subset}_data" / f"{one.name} (1).jpg", one)
            _text(root / f"obj_{subset}_data" / f"{one.name} (1).txt", _rows(one))
        _text(root / f"{subset}.txt", "".join(f"data/obj_{subset}_data/{one.name} (1).jpg\n" for one in images))
    _text(root / "obj.names", "".join(f"{name}\n" for name in NAMES))
    _text(
        root / "obj.data",
        f"classes = {len(NAMES)}\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n"
        "backup = backup/\n",
    )
    return {"train": len(splits["train"]), "valid": len(splits["val"])}


def cvat_ultralytics(root: Path, splits: Splits) -> dict[str, int]:
    for split, images in splits.items():
        for one in images:
            _image(root / "images" / split / "day 1" / f"{one.name}.jpg", one)
            _text(root / "labels" / split / "day 1" / f"{one.name}.txt", _rows(one))
        _text(root / f"{split}.txt", "".join(f"images/{split}/day 1/{one.name}.jpg\n" for one in images))
    names = "".join(f"  {label}: {name}\n" for label, name in enumerate(NAMES))
    _text(root / "data.yaml", f"names:\n{names}path: .\ntrain: train.txt\nval: val.txt\n")
    return {split: len(images) for split, images in splits.items()}


def official_voc(root: Path, splits: Splits) -> dict[str, int]:
    for split, images in splits.items():
        for one in images:
            _image(root / "JPEGImages" / f"{one.name}.jpg", one)
            _text(root / "Annotations" / f"{one.name}.xml", _xml(one, f"{one.name}.jpg", from_one))
        _text(root / f"ImageSets/Main/{split}.txt", "".join(f"{one.name}\n" for one in images))
        _text(root / f"ImageSets/Main/zebra_{split}.txt", "".join(f"{one.name} {'-1'}\n" for one in images))
    return {split: len(images) for split, images in splits.items()}


def cvat_voc(root: Path, splits: Splits) -> dict[str, int]:
    images = [one for some in splits.values() for one in some]
    for one in images:
        _image(root / "JPEGImages" / "day 1" / f"{one.name} 1.jpg", one)
        _text(root / "Annotations" / "day 1" / f"{one.name} 1.xml", _xml(one, f"day 1/{one.name} 1.jpg", edges))
    _text(root / "ImageSets/Main/default.txt", "".join(f"day 1/{one.name} 1\n" for one in images))
    _text(root / "labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(f"{name}:::\n" for name in NAMES))
    return {"default": len(images)}


def datumaro_voc(root: Path, splits: Splits) -> dict[str, int]:
    for split, images in splits.items():
        for one in images:
            _image(root / "JPEGImages" / f"{one.name} x.jpg", one)
            _text(root / "Annotations" / f"{one.name} x.xml", _xml(one, f"{one.name} x.jpg", edges))
        _text(root / f"ImageSets/Main/{split}.txt", "".join(f'"{one.name} x"\n' for one in images))
    return {split: len(images) for split, images in splits.items()}


def roboflow_voc(root: Path, splits: Splits) -> dict[str, int]:
    folders = {"train": "train", "val": "valid"}
    for split, images in splits.items():
        for one in images:
            _image(root / folders[split] / f"{one.name}.jpg", one)
            _text(root / folders[split] / f"{one.name}.xml", _xml(one, f"{one.name}.jpg", from_one))
    _text(root / "README.dataset.txt", "a set\n")
    return {"train": len(splits["train"]), "valid": len(splits["val"])}


def plain_voc(root: Path, splits: Splits, images_name: str = "images", xml_name: str = "annotations") -> dict[str, int]:
    images = [one for some in splits.values() for one in some]
    for one in images:
        _image(root / images_name / f"{one.name}.jpg", one)
        _text(root / xml_name / f"{one.name}.xml", _xml(one, f"{one.name}.jpg", from_one))
    return {"all": len(images)}


def xmls_voc(root: Path, splits: Splits) -> dict[str, int]:
    return plain_voc(root, splits, "Images", "annotations/xmls")


def one_folder_voc(root: Path, splits: Splits) -> dict[str, int]:
    return plain_voc(root, splits, ".", ".")


YOLO = [
    ultralytics, ultralytics_other_file, roboflow_yolo, label_studio_yolo, label_img_yolo, cvat_yolo, cvat_ultralytics,
]  # fmt: skip
VOC = [official_voc, cvat_voc, datumaro_voc, roboflow_voc, plain_voc, xmls_voc, one_folder_voc]
