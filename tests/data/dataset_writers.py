"""Convert a COCO folder to the other formats."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

SPLITS = ("train", "val")


def read_coco(root: Path, split: str) -> dict:
    """The instances form of a split."""
    return json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())


def objects_of(content: dict) -> list[tuple[dict, list[dict]]]:
    """The images of an instances form, each with its annotations."""
    return [
        (image, [one for one in content["annotations"] if one["image_id"] == image["id"]])
        for image in content["images"]
    ]


def write_yolo(coco: Path, root: Path, *, data: str) -> None:
    """Writes a YOLO folder whose ``data.yaml`` has the text ``data``."""
    for split in SPLITS:
        (root / "labels" / split).mkdir(parents=True)
        (root / "images" / split).mkdir(parents=True)
        for image, annotations in objects_of(read_coco(coco, split)):
            (root / "images" / split / image["file_name"]).symlink_to(coco / f"{split}2017" / image["file_name"])
            rows = []
            for one in annotations:
                x, y, w, h = one["bbox"]
                box = (
                    (x + w / 2) / image["width"],
                    (y + h / 2) / image["height"],
                    w / image["width"],
                    h / image["height"],
                )
                rows.append(f"{one['category_id']} " + " ".join(f"{value:.6f}" for value in box))
            if rows:
                (root / "labels" / split / Path(image["file_name"]).with_suffix(".txt")).write_text("\n".join(rows))
    (root / "data.yaml").write_text(data)


def write_voc(coco: Path, root: Path, *, names: list[str], difficult: set[int] = frozenset()) -> None:
    """Writes a VOC folder.

    ``names[category_id]`` is the name of a class. The annotations whose id is in ``difficult`` are marked as difficult.
    """
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split in SPLITS:
        stems = []
        for image, annotations in objects_of(read_coco(coco, split)):
            stems.append(f"{split}_{Path(image['file_name']).stem}")
            suffix = Path(image["file_name"]).suffix
            (root / "JPEGImages" / f"{stems[-1]}{suffix}").symlink_to(coco / f"{split}2017" / image["file_name"])
            (root / "Annotations" / f"{stems[-1]}.xml").write_text(_voc_xml(image, annotations, names, difficult))
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")


def _voc_xml(image: dict, annotations: list[dict], names: list[str], difficult: set[int]) -> str:
    tree = ElementTree.Element("annotation")
    size = ElementTree.SubElement(tree, "size")
    for side in ("width", "height"):
        ElementTree.SubElement(size, side).text = str(image[side])
    for one in annotations:
        thing = ElementTree.SubElement(tree, "object")
        ElementTree.SubElement(thing, "name").text = names[one["category_id"]]
        ElementTree.SubElement(thing, "difficult").text = str(int(one["id"] in difficult))
        x, y, w, h = one["bbox"]
        box = ElementTree.SubElement(thing, "bndbox")
        for name, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h)):
            ElementTree.SubElement(box, name).text = str(int(value))
        part = ElementTree.SubElement(thing, "part")  # persons have parts; the name of a part is not a class
        ElementTree.SubElement(part, "name").text = "head"
    return ElementTree.tostring(tree, encoding="unicode")


class TinyDetection(tfds.core.GeneratorBasedBuilder):
    """A TFDS data set with the content of a COCO folder and the usual features of detection data."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, coco: Path, names: list[str], crowd: set[int] = frozenset(), **options):
        self.coco, self.names, self.crowd = coco, names, crowd
        super().__init__(file_format=options.pop("file_format", "array_record"), **options)

    def _info(self) -> tfds.core.DatasetInfo:
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=self.names),
            "is_crowd": np.bool_,
            "area": np.float32,
            "id": np.int64,
        }
        features = {
            "image": tfds.features.Image(),
            "image/id": np.int64,
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, _) -> dict:
        return {"train": self._generate_examples("train"), "validation": self._generate_examples("val")}

    def _generate_examples(self, split: str):
        for image, annotations in objects_of(read_coco(self.coco, split)):
            path = self.coco / f"{split}2017" / image["file_name"]
            with Image.open(path) as picture:
                width, height = picture.size
            objects = [
                {
                    "bbox": tfds.features.BBox(y / height, x / width, (y + h) / height, (x + w) / width),
                    "label": one["category_id"],
                    "is_crowd": one["id"] in self.crowd,
                    "area": one["area"],
                    "id": one["id"],
                }
                for one in annotations
                for x, y, w, h in [one["bbox"]]
            ]
            yield image["id"], {"image": path, "image/id": image["id"], "image/filename": path.name, "objects": objects}
