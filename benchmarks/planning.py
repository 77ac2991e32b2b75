"""Seconds and memory that the plans of a run need at COCO's size, before a pixel is read.

Command::

    python benchmarks/planning.py [--json FILE]

The sizes are drawn: 118,287 training and 5,000 validation images, most of them of a common size of COCO with a long
side of 640 pixels, the others of random sizes. A run chooses the number of buckets, makes both plans once, and plans
each epoch. Seconds are of processor time, the least of the repetitions. Memory is what a planned
epoch holds; a run keeps two of them.
"""

import argparse
import dataclasses
import json
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environment  # noqa: F401  # finds the package, installed or not
import numpy as np

from detr_jax.config import Config
from detr_jax.data import TrainPlan, ValPlan
from detr_jax.data.bucket_counts import settle_train_buckets, settle_val_buckets

COMMON = {  # (height, width) in pixels: share of the images
    (480, 640): 0.25,
    (427, 640): 0.16,
    (640, 480): 0.09,
    (426, 640): 0.08,
    (640, 427): 0.05,
    (428, 640): 0.05,
    (640, 426): 0.03,
    (375, 500): 0.02,
    (640, 428): 0.02,
    (640, 640): 0.02,
    (500, 375): 0.01,
}


@dataclasses.dataclass
class Sizes:
    """As much of a data set as a plan needs."""

    sizes: np.ndarray
    """[images, 2] int, (height, width) in pixels."""
    max_objects: int = 93

    @property
    def image_ids(self) -> range:
        return range(len(self))

    def __len__(self) -> int:
        return len(self.sizes)


def coco_like(number: int, seed: int) -> Sizes:
    """A data set with sizes as COCO's."""
    rng = np.random.default_rng(seed)
    shares = [*COMMON.values(), 1 - sum(COMMON.values())]
    kind = rng.choice(len(shares), number, p=shares)
    long = np.where(rng.random(number) < 0.9, 640, rng.integers(400, 641, number))
    short = np.minimum(rng.integers(240, 641, number), long)
    landscape = rng.random(number) < 0.7
    other = np.stack([np.where(landscape, short, long), np.where(landscape, long, short)], axis=1)
    sizes = np.array([*COMMON, (0, 0)])[kind]
    return Sizes(np.where(kind[:, None] < len(COMMON), sizes, other))


def seconds(call: Callable[[int], Any], repeats: int) -> float:
    """The least processor time of calls with the numbers from 0 on."""
    found = []
    for number in range(repeats):
        started = time.process_time()
        call(number)
        found.append(time.process_time() - started)
    return round(min(found), 3)


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--images", type=int, default=118_287, help="training images (default 118287)")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    train: Any = coco_like(arguments.images, seed=0)
    val: Any = coco_like(5000, seed=1)
    config, repeats = Config(), arguments.repeats

    def settled(_: int = 0) -> Config:
        return settle_val_buckets(settle_train_buckets(config, train), val, len(train))

    print(f"{len(train)} training images; seconds of processor time")
    figures: dict[str, Any] = {"images": len(train), "bucket_numbers_s": seconds(settled, repeats)}
    data = settled().data
    figures["buckets"] = [data.num_train_buckets, data.num_val_buckets]
    print(f"numbers of buckets {tuple(figures['buckets'])}: {figures['bucket_numbers_s']:.2f} s")
    figures["validation_s"] = seconds(lambda _: ValPlan(val, data, 8), repeats)
    print(f"validation plan, {len(val)} images: {figures['validation_s']:.2f} s")
    print(" batch  training plan  epoch  MB per epoch")
    for batch_size in (2, 16, 64):
        construction = seconds(lambda _, size=batch_size: TrainPlan(train, data, size, seed=0), repeats)
        plan = TrainPlan(train, data, batch_size, seed=0)
        epoch = seconds(plan.epoch, repeats)
        tracemalloc.start()
        kept = plan.epoch(repeats)
        megabytes = round(tracemalloc.get_traced_memory()[0] / 1e6, 1)
        tracemalloc.stop()
        assert len(kept) == plan.steps_per_epoch
        figures[f"batch_{batch_size}"] = {"plan_s": construction, "epoch_s": epoch, "epoch_mb": megabytes}
        print(f"{batch_size:6} {construction:14.2f} {epoch:6.2f} {megabytes:13.1f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
