"""How much of what is computed on is image: useful pixels over padded pixels in the batches of an epoch.

Command::

    python benchmarks/padding.py --data ROOT [--json FILE]

ROOT is in COCO's layout. No pixel is read: sizes follow from the annotations and the random numbers of the
augmentation. Padded pixels are those of whole batches, places without an image in a validation batch included.
The JSON holds the headline, 16 buckets for training and 8 for validation at batches of 2 images; with more images in
a batch the padding depends on how many images there are for each bucket, and vanishes as the data set grows.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

import environment  # noqa: F401  # finds the package, installed or not
import numpy as np

from detr_jax.config import DataConfig
from detr_jax.data import CocoDataset, Source, TrainPlan, ValPlan
from detr_jax.data.plans import PlannedBatch

BATCH_SIZE = 2
BATCH_SIZES = (1, 2, 4, 8, 16)
SQUARE = (1344, 1344)


def coco_source(root: Path, split: str) -> CocoDataset:
    """The split of a COCO folder; the training images where there are no others."""
    annotations = root / "annotations" / f"instances_{split}2017.json"
    if split != "train" and not annotations.exists():
        return coco_source(root, "train")
    return CocoDataset(root / f"{split}2017", annotations)


def useful(batches: Iterable[PlannedBatch], batch_size: int) -> float:
    """Pixels of images over pixels of the batches that hold them."""
    pixels = [
        (sum(height * width for height, width in (image.geometry.size for image in images)), np.prod(bucket))
        for bucket, images, _ in batches
    ]
    image, bucket = np.sum(pixels, axis=0)
    return float(image / (bucket * batch_size))


def train_useful(source: Source, config: DataConfig, batch_size: int, epochs: int) -> float:
    """Mean over the first epochs of a run."""
    plan = TrainPlan(source, config, batch_size, seed=0)
    return float(np.mean([useful(plan.epoch(epoch), batch_size) for epoch in range(epochs)]))


def main() -> None:
    """Prints the table and writes the headline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--epochs", type=int, default=10, help="training epochs to average over (default 10)")
    arguments = parser.parse_args()
    train, val = coco_source(arguments.data, "train"), coco_source(arguments.data, "val")

    def train_row(config: DataConfig) -> list[float]:
        return [train_useful(train, config, size, arguments.epochs) for size in BATCH_SIZES]

    def val_row(config: DataConfig) -> list[float]:
        return [useful(ValPlan(val, config, size), size) for size in BATCH_SIZES]

    print(f"useful pixels / padded pixels; {len(train)} training images, mean of {arguments.epochs} epochs; ", end="")
    print(f"{len(val)} validation images")
    print("buckets".ljust(20) + "".join(f"batch {size}".rjust(10) for size in BATCH_SIZES))
    rows: dict[str, list[float]] = {}
    for count in (8, 12, 16):
        rows[f"train, {count}"] = train_row(DataConfig(num_train_buckets=count))
    rows["train, one square"] = train_row(DataConfig(train_buckets=(SQUARE,)))
    for count in (4, 6, 8):
        rows[f"validation, {count}"] = val_row(DataConfig(num_val_buckets=count))
    rows["validation, square"] = val_row(DataConfig(val_buckets=(SQUARE,)))
    for name, row in rows.items():
        print(name.ljust(20) + "".join(f"{share:.3f}".rjust(10) for share in row))

    column = BATCH_SIZES.index(BATCH_SIZE)
    buckets = len(TrainPlan(train, DataConfig(num_train_buckets=16), BATCH_SIZE, seed=0).buckets)
    val_buckets = len(ValPlan(val, DataConfig(num_val_buckets=8), BATCH_SIZE).buckets)
    headline = {
        "train": {"useful": rows["train, 16"][column], "buckets": buckets, "batch_size": BATCH_SIZE},
        "validation": {"useful": rows["validation, 8"][column], "buckets": val_buckets, "batch_size": BATCH_SIZE},
    }
    print(f"headline, batches of {BATCH_SIZE}: {json.dumps(headline)}")
    if arguments.json:
        arguments.json.write_text(json.dumps(headline, indent=2) + "\n")


if __name__ == "__main__":
    main()
