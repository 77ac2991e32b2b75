"""`TfdsDataset`: a data set of TensorFlow Datasets, read by index and without TensorFlow."""

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
_FIRST_PIXEL = {"voc": 1}  # the builders whose xmin and ymin are counted from 1, as in their files


class TfdsDataset(AnnotatedDataset):
    """A split of a prepared data set whose features hold ``image`` and ``objects`` with ``bbox`` and ``label``.

    This includes ``coco/2017``, ``voc/2007`` and most detection builders. The optional features are ``is_crowd``,
    ``is_difficult`` (ignored like a crowd), ``area``, ``image/id`` and ``image/filename``. All annotations and the
    headers of the images are read once, at the start. Images are decoded in the same way as files.

    Labels are the numbers of the builder. If its class names are COCO's 80, labels are COCO's raw ids, as the official
    evaluation expects. TFDS truncates the areas of ``coco/2017`` to whole numbers, which moves a few objects across the
    limits of small and medium objects. For official numbers, give the instances JSON as ``annotation_file``.

    Args:
      root: the ``data_dir`` of TFDS, or the folder of a version. If it is empty, the default of TFDS is used.
      name: such as "coco/2017", "voc/2007:5.0.0" or "my_dataset".
      split: such as "train", "validation" or "train[:90%]".
      annotation_file: an instances JSON to evaluate against, joined by ``image/id``. If it is empty, the evaluation
        uses the annotations of TFDS.
      strict: raise on the first annotation error. If False, the annotations are dropped and recorded in ``faults``.
      skip: drop examples that cannot be read, and record them in ``faults``.
      decoding: ``exif`` and ``max_level`` of `detr_jax.data.images.decode`.

    Raises:
      DataError: the data set is not prepared, cannot be read by index, is not a detection data set, has no such split,
        or, if ``strict``, an annotation is wrong.
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
        record_of: dict[int, int] = {}
        with ThreadPoolExecutor(_THREADS) as threads:
            examples = threads.map(self._example, range(len(self._records)))
            _translate(examples, form, record_of, raw_ids, _FIRST_PIXEL.get(builder.name, 0), faults)
        official = builder.name == "coco"
        super().__init__(check_instances(form, faults, official=official), strict=strict, **decoding)
        self._record_of = record_of  # index of the record by image id
        if annotation_file:
            self._evaluate_against(Path(annotation_file))

    def image_name(self, index: int) -> str:
        """The name of an image in messages: its original file name if TFDS stores it, else its number."""
        return f"The image {self.file_name(index)} of {self._name}"

    def image_bytes(self, index: int) -> bytes:
        """The encoded content of an image, as TFDS stores it."""
        return self._records[self._record_of[int(self.image_ids[index])]]["image"]

    def _example(self, index: int) -> "_Example":
        try:
            record = self._records[index]
            size = read_size(record["image"], "its image")
        except Exception as error:  # storage, protocol buffers and image headers raise many types
            return _Example(index, fault=" ".join(str(error).split()) or type(error).__name__)
        filename = record.get("image/filename", b"")
        return _Example(
            index,
            int(record["image/id"]) if isinstance(record.get("image/id"), int | np.integer) else index + 1,
            filename.decode(errors="replace") if isinstance(filename, bytes) and filename else f"example {index}",
            size,
            {key: np.asarray(value) for key, value in record["objects"].items() if key in _OBJECT_FEATURES},
        )

    def _evaluate_against(self, path: Path) -> None:
        """Replaces the ground truth by an instances JSON, joined by image id.

        Raises:
          DataError: the file does not list all images, or has other categories.
        """
        faults = Faults(str(path))
        official = check_rows(read_instances(path, faults), faults, official=True)
        faults.raise_first()
        there = {image_id: index for index, image_id in enumerate(official.image_ids.tolist())}
        if missing := set(self.image_ids.tolist()) - there.keys():
            raise DataError(f"{path} does not list image {min(missing)} of {self._name}: give the JSON of this split.")
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
    """Opens the "train" or "val" split of ``given.name``.

    Args:
      given: the fields of this kind of data set.
      data: the configuration of the data.
      split: "train" or "val".
      strict: see `TfdsDataset`.

    Raises:
      DataError: see `TfdsDataset`.
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
    """The content of a record without the pixels."""

    number: int
    """The index of the record."""
    image_id: int = 0
    file_name: str = ""
    size: tuple[int, int] = (0, 0)
    """(height, width) in pixels."""
    objects: dict[str, np.ndarray] = {}  # noqa: RUF012 (never changed)
    fault: str = ""


def _translate(
    examples: Iterable[_Example],
    form: dict[str, list[Any]],
    record_of: dict[int, int],
    raw_ids: list[int],
    first_pixel: int,
    faults: Faults,
) -> None:
    """Adds images and objects of the examples to ``form``, and the index of each image's record to ``record_of``."""
    for example in examples:
        if example.fault:
            kind = "examples that cannot be read"
            faults.unopened(kind, f"example {example.number} cannot be read ({example.fault})")
            continue
        height, width = example.size
        image = {"id": example.image_id, "file_name": example.file_name, "height": height, "width": width}
        form["images"].append(image)
        record_of.setdefault(example.image_id, example.number)
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
    """The folder of the newest prepared version of a data set.

    Raises:
      DataError: there is none, or there are several configurations.
    """
    base = epath.Path(root or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    if (base / "dataset_info.json").exists():
        return base
    folder = base / name.replace(":", "/")
    for pattern in (".", "*", "*/*"):  # a version, all versions of a configuration, all versions of all configurations
        found = [file.parent for file in folder.glob(f"{pattern}/dataset_info.json")]
        configurations = {version.parent for version in found}
        if len(configurations) > 1:
            there = ", ".join(sorted(f"{name}/{one.name}" for one in configurations))
            raise DataError(f"data.sources.tfds.name={name} has several configurations: set it to one of {there}.")
        if found:
            return max(found, key=_version)
    raise DataError(
        f"No data set {name} is prepared under {base}: set data.root to TFDS's data_dir, or prepare it with `tfds "
        f"build {name} --data_dir={base} --file_format=array_record` (if TFDS needs TensorFlow for this: pip "
        "install 'detr_jax[tensorflow]')."
    )


def _version(folder: epath.Path) -> tuple[int, ...]:
    return tuple(int(part) if part.isdecimal() else -1 for part in folder.name.split("."))


def _records(builder: Any, folder: epath.Path, split: str) -> Any:
    """The records of a split by index, with encoded images.

    Raises:
      DataError: the data set is not a detection data set, has no such split, or cannot be read by index.
    """
    features = dict(builder.info.features.items())
    pictures = [key for key, feature in features.items() if isinstance(feature, tensorflow_datasets.features.Image)]
    objects: Any = features.get("objects")
    parts = set(objects.feature.keys()) if hasattr(getattr(objects, "feature", None), "keys") else set()
    if "image" not in pictures or not {"bbox", "label"} <= parts:
        raise DataError(
            f"{folder} is not a detection data set (it has {', '.join(sorted(features))}): its features must hold "
            "image and objects with bbox and label."
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
            f"`tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record` (if TFDS needs "
            "TensorFlow for this: pip install 'detr_jax[tensorflow]')."
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
