"""Data sets of TensorFlow Datasets, read by index and without TensorFlow."""

import dataclasses
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets
from etils import epath

from detr_jax.config import DataConfig, TfdsConfig
from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.data.annotation_checks import check_instances, check_rows
from detr_jax.data.coco import read_instances
from detr_jax.data.coco_classes import COCO_CLASSES
from detr_jax.data.images import exif_rule, read_size
from detr_jax.data.instances import Truth
from detr_jax.data.source import DataError, Faults

_THREADS = 8
_FIRST_PIXEL = {"voc": 1}  # these builders pass xmin and ymin on as their files have them, counted from 1


class TfdsDataset(AnnotatedDataset):
    """A split of a prepared data set whose features hold ``image`` and ``objects`` with ``bbox`` and ``label``.

    Such are ``coco/2017``, ``voc/2007`` and most detection builders. The features ``is_crowd``, ``is_difficult``
    (ignored as a crowd is), ``area``, ``image/id`` and ``image/filename`` are used where there are any. All annotations
    and the headers of the images are read once, at the start; images are decoded as those of files are.

    Labels are the builder's own, but where its names are COCO's 80, they become COCO's raw ids, as the official
    evaluation expects. TFDS cuts the areas of ``coco/2017`` to whole numbers, which moves a few objects over the limits
    of small and medium ones: for official numbers give the instances JSON as ``annotation_file``.

    Args:
      root: what TFDS calls ``data_dir``, a version's own folder, or empty for TFDS's default.
      name: such as "coco/2017", "voc/2007:5.0.0" or "my_dataset".
      split: such as "train", "validation" or "train[:90%]".
      annotation_file: an instances JSON to evaluate against, joined by ``image/id``; empty: what TFDS says.
      strict: whether wrong annotations end here, or are left out to be reported.
      skip: whether examples that cannot be read are left out, and counted in ``faults``.

    Raises:
      DataError: the data set is not prepared, cannot be read by index, is no detection data set, has no such split, or,
        where ``strict``, an annotation is wrong.
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        split: str,
        *,
        annotation_file: str | Path = "",
        strict: bool = True,
        skip: bool = False,
        **decoding: Any,
    ):
        folder = _prepared_folder(root, name)
        builder = tensorflow_datasets.builder_from_directory(folder)
        self._name = f"{name} ({split})"
        self._records = _records(builder, folder, split)
        classes = builder.info.features["objects"]["label"].names
        raw_ids = list(COCO_CLASSES) if classes == list(COCO_CLASSES.values()) else list(range(len(classes)))
        faults = Faults(f"{folder} ({split})", skip=skip)
        form: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": raw, "name": text} for raw, text in zip(raw_ids, classes, strict=True)],
        }
        place_of: dict[int, int] = {}
        with ThreadPoolExecutor(_THREADS) as threads:
            examples = threads.map(self._example, range(len(self._records)))
            _translate(examples, form, place_of, raw_ids, _FIRST_PIXEL.get(builder.name, 0), faults)
        official = builder.name == "coco"
        super().__init__(check_instances(form, faults, official=official), strict=strict, **decoding)
        self._place_of = place_of  # among the records, by image id
        if annotation_file:
            self._evaluate_against(Path(annotation_file))

    def image_name(self, index: int) -> str:
        """The file that the image was, where TFDS knows it, else its place."""
        return f"The image {self.file_name(index)} of {self._name}"

    def image_bytes(self, index: int) -> bytes:
        """The image as TFDS stores it."""
        return self._records[self._place_of[int(self.image_ids[index])]]["image"]

    def _example(self, place: int) -> "_Example":
        try:
            record = self._records[place]
            size = read_size(record["image"], "its image")
        except Exception as error:  # storage, protocol buffers and image headers fail in ways of their own
            return _Example(place, fault=" ".join(str(error).split()) or type(error).__name__)
        filename = record.get("image/filename", b"")
        return _Example(
            place,
            int(record["image/id"]) if isinstance(record.get("image/id"), int | np.integer) else place + 1,
            filename.decode(errors="replace") if isinstance(filename, bytes) and filename else f"example {place}",
            size,
            {key: np.asarray(value) for key, value in record["objects"].items() if key in _OBJECT_FEATURES},
        )

    def _evaluate_against(self, path: Path) -> None:
        """Takes the truth from an instances JSON, joined by image id."""
        faults = Faults(str(path))
        official = check_rows(read_instances(path, faults), faults, official=True)
        faults.raise_first()
        there = {image_id: index for index, image_id in enumerate(official.image_ids.tolist())}
        if missing := set(self.image_ids.tolist()) - there.keys():
            raise DataError(f"{path} does not list image {min(missing)} of {self._name}: give the JSON of that split.")
        if not self.categories.items() <= official.categories.items():
            label = next(iter(self.categories.items() - official.categories.items()))
            raise DataError(f"{path} has other categories than {self._name}, which has {label[0]}: {label[1]!r}.")
        index_of = np.full(len(there), -1)
        index_of[[there[image_id] for image_id in self.image_ids.tolist()]] = np.arange(len(self))
        truth = official.truth
        mine = index_of[truth.image] >= 0
        self._set(
            dataclasses.replace(
                self._instances,
                truth=Truth(
                    index_of[truth.image][mine].astype(np.int32),
                    truth.labels[mine],
                    truth.boxes[mine],
                    truth.areas[mine],
                    truth.crowds[mine],
                ),
            )
        )


def open_tfds(given: TfdsConfig, data: DataConfig, split: str, *, strict: bool) -> TfdsDataset:
    """The "train" or "val" split of a data set.

    Raises:
      DataError: see `TfdsDataset`; or there is no split to evaluate on.
    """
    train = split == "train"
    name = (data.train_split or "train") if train else (data.val_split or "validation")
    official = "" if train or not given.val_annotations else Path(data.root) / given.val_annotations
    return TfdsDataset(
        data.root,
        given.name,
        name,
        annotation_file=official,
        strict=strict,
        skip=strict and train and data.on_error == "skip",
        exif=exif_rule(data),
        max_level=data.max_level,
    )


_OBJECT_FEATURES = ("bbox", "label", "is_crowd", "is_difficult", "area")


class _Example(NamedTuple):
    """What a record says, but for the pixels."""

    place: int
    image_id: int = 0
    file_name: str = ""
    size: tuple[int, int] = (0, 0)
    """(height, width) in pixels."""
    objects: dict[str, np.ndarray] = {}  # noqa: RUF012 (a default that nobody changes)
    fault: str = ""


def _translate(
    examples: Iterable[_Example],
    form: dict[str, list[Any]],
    place_of: dict[int, int],
    raw_ids: list[int],
    first_pixel: int,
    faults: Faults,
) -> None:
    """Adds the images and objects of the examples to an instances form, and the place of each image by its id."""
    for example in examples:
        if example.fault:
            kind = "examples that cannot be read"
            faults.unopened(kind, f"example {example.place} cannot be read ({example.fault})")
            continue
        height, width = example.size
        image = {"id": example.image_id, "file_name": example.file_name, "height": height, "width": width}
        form["images"].append(image)
        place_of.setdefault(example.image_id, example.place)
        boxes = example.objects["bbox"].reshape(-1, 4).astype(np.float64)
        y0, x0, y1, x1 = (boxes * (height, width, height, width)).T
        x0, y0 = x0 - first_pixel, y0 - first_pixel
        nothing = np.zeros(len(boxes))
        ignored = example.objects.get("is_crowd", nothing) != 0
        ignored |= example.objects.get("is_difficult", nothing) != 0
        areas = example.objects.get("area", np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0))
        labels = example.objects["label"].astype(int).tolist()
        for i, box in enumerate(np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).tolist()):
            form["annotations"].append(
                {
                    "id": len(form["annotations"]) + 1,
                    "where": f"object {i + 1} of {example.file_name}",
                    "image_id": example.image_id,
                    "category_id": raw_ids[labels[i]] if 0 <= labels[i] < len(raw_ids) else labels[i],
                    "bbox": box,
                    "area": float(areas[i]),
                    "iscrowd": int(ignored[i]),
                }
            )


def _prepared_folder(root: str | Path, name: str) -> epath.Path:
    """The folder of the newest prepared version."""
    base = epath.Path(root or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if (base / "dataset_info.json").exists():
        return base
    folder = base / name.replace(":", "/")
    for pattern in (".", "*", "*/*"):  # a version, the versions of a configuration, those of every configuration
        found = [file.parent for file in folder.glob(f"{pattern}/dataset_info.json")]
        configurations = {version.parent for version in found}
        if len(configurations) > 1:
            there = ", ".join(sorted(f"{name}/{one.name}" for one in configurations))
            raise DataError(f"data.sources.tfds.name={name} is not one data set: say which of {there}.")
        if found:
            return max(found, key=_version)
    raise DataError(
        f"No data set {name} is prepared under {base}: set data.root to TFDS's data_dir, or prepare it with `tfds "
        f"build {name} --data_dir={base} --file_format=array_record` (where TFDS needs TensorFlow for that: pip "
        "install 'detr_jax[tensorflow]')."
    )


def _version(folder: epath.Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in folder.name.split("."))


def _records(builder: Any, folder: epath.Path, split: str) -> Any:
    """The records of a split by index, images as they are stored.

    Raises:
      DataError: they cannot be had.
    """
    features = dict(builder.info.features.items())
    pictures = [key for key, feature in features.items() if isinstance(feature, tensorflow_datasets.features.Image)]
    objects: Any = features.get("objects")
    parts = set(objects.feature.keys()) if hasattr(getattr(objects, "feature", None), "keys") else set()
    if "image" not in pictures or not {"bbox", "label"} <= parts:
        raise DataError(
            f"{folder} is no detection data set (it has {', '.join(sorted(features))}): its features must hold image "
            "and objects with bbox and label."
        )
    box_format = objects["bbox"].bbox_format
    if box_format and getattr(box_format, "value", box_format) != "REL_YXYX":
        raise DataError(
            f"{folder} has boxes as {box_format}: they must be TFDS's own, normalised ymin, xmin, ymax, xmax."
        )
    try:
        return builder.as_data_source(
            split, decoders={key: tensorflow_datasets.decode.SkipDecoding() for key in pictures}
        )
    except NotImplementedError:
        raise DataError(
            f"{folder} is prepared as {builder.info.file_format.value}, which cannot be read by index: convert it with "
            f"`tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record` (where TFDS needs "
            "TensorFlow for that: pip install 'detr_jax[tensorflow]')."
        ) from None
    except ImportError as error:
        raise DataError(
            f"TFDS cannot read {folder} without {error.name}: pip install 'detr_jax[tensorflow]'."
        ) from None
    except (ValueError, KeyError, AssertionError):
        there = ", ".join(sorted(builder.info.splits)) or "none"
        raise DataError(
            f"{folder} has no split {split!r} (it has {there}): set data.train_split and data.val_split."
        ) from None
