"""Data: sources, transforms, and batches of static shapes."""

from pathlib import Path

from detr_jax.config import Config
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


def open_source(config: Config, split: str) -> Source:
    """The data set of a configuration, "train" or "val", checked against the model's classes.

    Raises:
      DataError: the data cannot be used, or has labels for which ``model.num_classes`` is too small.
    """
    data = config.data
    source: Source
    if data.dataset == "shapes":
        source = ShapesDataset(data.shapes, split)
    else:
        root = Path(data.root)
        images, annotations = {
            "train": (data.train_images, data.train_annotations),
            "val": (data.val_images, data.val_annotations),
        }[split]
        if not root.is_dir():
            raise DataError(f"The folder data.root={data.root} does not exist: give the root of the COCO layout.")
        source = CocoDataset(root / images, root / annotations)
    out_of_range = [label for label in source.categories if not 0 <= label < config.model.num_classes]
    if out_of_range:
        label = out_of_range[0]
        raise DataError(
            f"The data has category {label} ({source.categories[label]!r}), but model.num_classes="
            f"{config.model.num_classes} only allows 0 to {config.model.num_classes - 1}: "
            f"set it to the highest category id plus 1, which is {max(source.categories) + 1}."
        )
    return source
