"""Data sets in COCO's layout: a folder of images and an instances JSON (Lin et al., 2014)."""

import collections
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from detr_jax.data.source import DataError, Faults, Objects, Sample

_BOX_SLACK = 1.0  # pixels by which boxes of COCO pass their image through rounding alone


class CocoDataset:
    """Images of a folder with the boxes of an instances JSON.

    Labels are the raw category ids. Crowd annotations are left out of training and kept for the evaluation, and
    images without objects are kept. Boxes are clipped to their image; those that then have no area are dropped.
    Both are counted in ``faults``.

    Raises:
      DataError: a folder or file is missing, the JSON is damaged, or an annotation names an image or a category
        that is not listed.
    """

    def __init__(self, image_folder: str | Path, annotation_file: str | Path):
        self.image_folder = Path(image_folder)
        self.annotation_file = Path(annotation_file)
        if not self.image_folder.is_dir():
            raise DataError(
                f"The image folder {self.image_folder} does not exist: set data.root, data.train_images "
                "and data.val_images to where the images are."
            )
        content = _read_json(self.annotation_file)
        self.faults = Faults(str(self.annotation_file))
        self.categories = self._checked_categories(content["categories"])
        self._images = self._checked_images(content["images"])
        self.image_ids = list(self._images)
        self.sizes = np.array([(image["height"], image["width"]) for image in self._images.values()], np.int64).reshape(
            -1, 2
        )
        self._annotations: list[dict[str, Any]] = []
        self._objects = self._checked_objects(content["annotations"])
        self.max_objects = max((len(objects.labels) for objects in self._objects.values()), default=0)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """The image and its objects: boxes xyxy in pixels, labels the raw category ids.

        Raises:
          DataError: the file is missing, cannot be decoded, or has another size than the annotations say.
        """
        image_id = self.image_ids[index]
        record = self._images[image_id]
        path = self.image_folder / record["file_name"]
        image = read_image(path)
        if image.shape[:2] != (record["height"], record["width"]):
            raise DataError(
                f"{path} has {image.shape[0]} x {image.shape[1]} pixels (height x width), but {self.annotation_file} "
                f"says {record['height']} x {record['width']} of image {image_id}: correct the one that is wrong."
            )
        return Sample(image, self._objects[image_id])

    def ground_truth(self) -> dict[str, Any]:
        """The fields of the instances JSON that an evaluation needs, unchanged; crowds are included."""
        return {
            "images": list(self._images.values()),
            "annotations": self._annotations,
            "categories": [{"id": label, "name": name} for label, name in self.categories.items()],
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_annotations": []}  # worker processes evaluate nothing

    def _field(self, item: Any, name: str, kind: type | tuple[type, ...], what: str) -> Any:
        if not isinstance(item, dict):
            raise DataError(f"{self.annotation_file}: {item!r} is not a JSON object, as each {what} must be.")
        value = item.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            known = f"{what} {item['id']}" if "id" in item else f"a {what} without id"
            wanted = "a whole number" if kind is int else "text" if kind is str else "a list of four numbers"
            raise DataError(f"{self.annotation_file}: {known} has {name}={value!r}, which must be {wanted}.")
        return value

    def _checked_categories(self, items: list[Any]) -> dict[int, str]:
        categories: dict[int, str] = {}
        for item in items:
            label = self._field(item, "id", int, "category")
            if label in categories:
                raise DataError(f"{self.annotation_file}: two categories have the id {label}; ids must be unique.")
            categories[label] = str(item.get("name", label))
        return categories

    def _checked_images(self, items: list[Any]) -> dict[int, dict[str, Any]]:
        images: dict[int, dict[str, Any]] = {}
        for item in items:
            image_id = self._field(item, "id", int, "image")
            self._field(item, "file_name", str, "image")
            for side in ("height", "width"):
                if self._field(item, side, int, "image") < 1:
                    raise DataError(
                        f"{self.annotation_file}: image {image_id} has {side}={item[side]}, which must be positive."
                    )
            if image_id in images:
                raise DataError(f"{self.annotation_file}: two images have the id {image_id}; ids must be unique.")
            if image_id < 0:
                raise DataError(f"{self.annotation_file}: an image has the id {image_id}, which must not be negative.")
            images[image_id] = {name: item[name] for name in ("id", "file_name", "height", "width")}
        if not images:
            raise DataError(f"{self.annotation_file} lists no image: at least one is needed.")
        return images

    def _checked_objects(self, annotations: list[Any]) -> dict[int, Objects]:
        boxes: dict[int, list[tuple[float, ...]]] = collections.defaultdict(list)
        labels: dict[int, list[int]] = collections.defaultdict(list)
        seen: set[int] = set()
        for item in annotations:
            annotation_id = self._field(item, "id", int, "annotation")
            name = f"annotation {annotation_id}"
            if annotation_id in seen:
                raise DataError(f"{self.annotation_file}: two annotations have the id {annotation_id}; make it unique.")
            seen.add(annotation_id)
            image_id = self._field(item, "image_id", int, "annotation")
            label = self._field(item, "category_id", int, "annotation")
            if image_id not in self._images:
                raise DataError(
                    f"{self.annotation_file}: {name} belongs to image {image_id}, which is not listed under images."
                )
            if label not in self.categories:
                raise DataError(
                    f"{self.annotation_file}: {name} has category_id={label}, which is not listed under categories."
                )
            box = self._field(item, "bbox", list, "annotation")
            if len(box) != 4 or not all(_is_finite_number(value) for value in box):
                raise DataError(
                    f"{self.annotation_file}: {name} has bbox={box}, which must be four finite numbers "
                    "[x, y, width, height] in pixels."
                )
            crowd = item.get("iscrowd", 0)
            if crowd not in (0, 1):
                raise DataError(f"{self.annotation_file}: {name} has iscrowd={crowd!r}, which must be 0 or 1.")
            area = item.get("area", box[2] * box[3])
            if not _is_finite_number(area) or area < 0:
                raise DataError(f"{self.annotation_file}: {name} has area={area!r}, which must be a number of pixels.")
            if "area" not in item:
                self.faults.add("annotations without area were given that of their box", name)
            self._annotations.append(
                {
                    "id": annotation_id,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
            if crowd:
                continue
            clipped = self._clipped(box, self._images[image_id], f"{name} of image {image_id}")
            if clipped is not None:
                boxes[image_id].append(clipped)
                labels[image_id].append(label)
        return {
            image_id: Objects(
                np.array(boxes.get(image_id, []), np.float32).reshape(-1, 4),
                np.array(labels.get(image_id, []), np.int32),
            )
            for image_id in self._images
        }

    def _clipped(self, box: list[float], image: dict[str, Any], name: str) -> tuple[float, ...] | None:
        """xywh to xyxy within the image; None where no area is left."""
        x, y, w, h = box
        width, height = image["width"], image["height"]
        if w <= 0 or h <= 0:
            self.faults.add("boxes without area were dropped", f"{name}, bbox {box}")
            return None
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
        if x1 <= x0 or y1 <= y0:
            self.faults.add(
                "boxes wholly outside of their image were dropped", f"{name}, bbox {box} in {width} x {height}"
            )
            return None
        if max(-x, -y, x + w - width, y + h - height) > _BOX_SLACK:
            self.faults.add(
                "boxes that reach outside of their image were clipped", f"{name}, bbox {box} in {width} x {height}"
            )
        return x0, y0, x1, y1


def read_image(path: Path) -> np.ndarray:
    """Decodes an image file to RGB, [H, W, 3] uint8; a rotation noted in EXIF is not applied, as COCO's boxes expect.

    Raises:
      DataError: the file is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise DataError(f"The image file {path} has more than 8 bits a channel: convert it to 8 bits.")
            return np.asarray(picture.convert("RGB"))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"The image file {path} does not exist, although the annotations list it.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"The image file {path} cannot be decoded ({error}): replace it or take it out.") from None


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(
            f"The annotation file {path} does not exist: set data.root, data.train_annotations and "
            "data.val_annotations to where the instances JSON files are."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"The annotation file {path} cannot be read as JSON ({error}).") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"The annotation file {path} has no list {key!r}: an instances JSON holds images, annotations and "
                "categories."
            )
    return content
