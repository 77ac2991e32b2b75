"""Data: sources, transforms, and batches of static shapes."""

from pathlib import Path

from detr_jax.config import Config, DataConfig
from detr_jax.data.batching import Batch as Batch
from detr_jax.data.batching import TrainPlan as TrainPlan
from detr_jax.data.batching import ValPlan as ValPlan
from detr_jax.data.batching import batches as batches
from detr_jax.data.coco import CocoDataset as CocoDataset
from detr_jax.data.shapes import ShapesDataset as ShapesDataset
from detr_jax.data.source import DataError as DataError
from detr_jax.data.source import Objects as Objects
from detr_jax.data.source import Sample as Sample
from detr_jax.data.source import Source as Source
from detr_jax.data.voc import VocDataset as VocDataset
from detr_jax.data.yolo import YoloDataset as YoloDataset


def open_source(config: Config, split: str, *, strict: bool = True) -> Source:
    """The data set of a configuration, "train" or "val", checked against the model's classes.

    Without ``strict``, what is wrong with single annotations is left out and counted in the source's ``faults``, and
    the number of classes is not looked at; nor is it where ``model.num_classes`` is 0. With ``data.on_error="skip"``,
    training images that cannot even be opened are left out and counted.

    Raises:
      DataError: the data cannot be used, has more images that cannot be opened than ``data.max_skipped`` allows, or has
        labels for which ``model.num_classes`` is too small.
    """
    source = _open(config.data, split, strict)
    left_out = source.faults.left_out
    if left_out > config.data.max_skipped * (listed := left_out + len(source)):
        raise DataError(
            f"{left_out} of {listed} training images cannot be opened, which is more than data.max_skipped="
            f"{config.data.max_skipped} allows: mend them, take them out or raise the share. "
            + " ".join(source.faults.sentences())
        )
    if strict and config.model.num_classes:
        check_classes(source, config.model.num_classes)
    return source


def check_classes(source: Source, num_classes: int) -> None:
    """Checks that a model of ``num_classes`` can tell all classes of a data set.

    Raises:
      DataError: it cannot.
    """
    for label, name in source.categories.items():
        if not 0 <= label < num_classes:
            raise DataError(
                f"The data has category {label} ({name!r}), but model.num_classes={num_classes} only allows 0 to "
                f"{num_classes - 1}: set it to the highest category id plus 1, which is {max(source.categories) + 1}."
            )


def _open(data: DataConfig, split: str, strict: bool) -> Source:
    train, root = split == "train", Path(data.root)
    skip = strict and train and data.on_error == "skip"
    if data.dataset == "shapes":
        return ShapesDataset(data.shapes, split)
    if data.dataset == "tfds":
        try:
            from detr_jax.data.tfds import TfdsDataset  # takes a second to import, and much memory
        except Exception as error:  # it is missing, or another package's protobuf does not fit: any kind of error
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                f"data.dataset=tfds needs the package tensorflow-datasets, which cannot be imported "
                f"({type(error).__name__}: {reason}): install it again with pip install --upgrade tensorflow-datasets, "
                "or use another data set; everything else works without it."
            ) from error
        name = data.train_split if train else data.val_split or "validation"
        official = "" if train or not data.tfds_val_annotations else root / data.tfds_val_annotations
        return TfdsDataset(data.root, data.tfds_name, name, annotation_file=official, strict=strict, skip=skip)
    if not root.is_dir():
        raise DataError(f"The folder data.root={data.root} does not exist: give the root of the data set.")
    if data.dataset == "yolo":
        return YoloDataset(root / data.yolo_file, split, strict=strict, skip=skip)
    if data.dataset == "voc":
        name = data.train_split if train else data.val_split or "val"
        return VocDataset(root, name, strict=strict, skip=skip)
    images, annotations = (
        (data.train_images, data.train_annotations) if train else (data.val_images, data.val_annotations)
    )
    if not (root / annotations).exists():
        for other, sign in (("yolo", data.yolo_file), ("voc", "ImageSets")):
            if (root / sign).exists():
                raise DataError(
                    f"data.root={data.root} has no {annotations} but {sign}, as {other} folders have: set "
                    f"data.dataset={other}."
                )
    return CocoDataset(root / images, root / annotations, strict=strict)
