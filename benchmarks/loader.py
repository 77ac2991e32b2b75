"""How fast images become batches: this loader against a plain one of Pillow and torch (or numpy), side by side.

Command::

    python benchmarks/loader.py --data ROOT [--json FILE] [--memory]

ROOT is in COCO's layout. Both sides read the same JPEGs, with the same flips, crops and sizes, on one thread, in turn;
the figures are medians over the rounds, in images per second of processor time, which is per core. The peer is written
from the paper's recipe: decode, convert, flip, resize (or resize, crop, resize) in Pillow, then to float, scaled,
normalised with mean and deviation, and padded into a batch of [B, 3, H, W] with its mask. Here, batches are uint8, and
normalisation and mask are made on the device, and large training images are decoded to the scale needed
(`data.scaled_decoding`), which the peer's recipe does not do.

With ``--masks``, the peer is this loader without masks, so that the ratio is the share of its rate that is left.

With ``--memory``, five epochs are read through the whole pipeline, and the memory in use is told after each.
"""

import argparse
import io
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import environment  # noqa: F401  # finds the package, installed or not
import numpy as np
from padding import coco_source
from PIL import Image

from detr_jax.config import DataConfig
from detr_jax.data import CocoDataset, TrainPlan, ValPlan, batches
from detr_jax.data.batching import BatchLoader
from detr_jax.data.finding import find_layout
from detr_jax.data.plans import PlannedBatch, PlannedImage

try:
    import torch

    torch.set_num_threads(1)
except ImportError:
    torch = None  # type: ignore[assignment]

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def peer_picture(source: CocoDataset, planned: PlannedImage) -> Image.Image:
    """An image with its geometry carried out step by step."""
    index, geometry = planned
    picture = Image.open(io.BytesIO(source.image_bytes(index))).convert("RGB")
    if geometry.flip:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if geometry.crop is not None and geometry.crop_from is not None:
        top, left, height, width = geometry.crop
        picture = picture.resize(geometry.crop_from[::-1], Image.Resampling.BILINEAR)
        picture = picture.crop((left, top, left + width, top + height))
    return picture.resize(geometry.size[::-1], Image.Resampling.BILINEAR)


def numpy_batch(pictures: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Padded images and their mask, by numpy."""
    arrays = []
    for picture in pictures:
        array = np.asarray(picture).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        arrays.append((array - np.float32(MEAN)[:, None, None]) / np.float32(DEVIATION)[:, None, None])
    height, width = np.max([array.shape[1:] for array in arrays], axis=0)
    images = np.zeros((len(arrays), 3, height, width), np.float32)
    mask = np.ones((len(arrays), height, width), bool)
    for array, image, padding in zip(arrays, images, mask, strict=True):
        image[:, : array.shape[1], : array.shape[2]] = array
        padding[: array.shape[1], : array.shape[2]] = False
    return images, mask


def torch_batch(pictures: list[Image.Image]) -> object:
    """Padded images and their mask, by torch, as torchvision's transforms make them."""
    tensors = []
    for picture in pictures:
        tensor = torch.from_numpy(np.array(picture, copy=True)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
        tensors.append(tensor.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(DEVIATION)[:, None, None]))
    height, width = (max(tensor.shape[axis] for tensor in tensors) for axis in (1, 2))
    images = torch.zeros((len(tensors), 3, height, width))
    mask = torch.ones((len(tensors), height, width), dtype=torch.bool)
    for tensor, image, padding in zip(tensors, images, mask, strict=True):
        image[:, : tensor.shape[1], : tensor.shape[2]].copy_(tensor)
        padding[: tensor.shape[1], : tensor.shape[2]] = False
    return images, mask


def measure(sides: dict[str, Callable[[PlannedBatch], object]], plan: list[PlannedBatch], rounds: int) -> dict:
    """Median images per second of processor time of each side, and the ratio of the first to the second."""
    images = sum(len(batch.images) for batch in plan)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, load in sides.items():
            started = time.process_time()
            for batch in plan:
                load(batch)
            if number:  # the first round fills the system's cache
                rates[name].append(images / (time.process_time() - started))
    ours, peer = (float(np.median(rates[name])) for name in sides)
    return {"images_per_s": round(ours, 1), "peer_images_per_s": round(peer, 1), "ratio": round(ours / peer, 2)}


def memory(source: CocoDataset, batch_size: int) -> list[float]:
    """The peak of MiB in use up to the end of each of five epochs, through threads and prefetching."""
    config = DataConfig()
    plan = TrainPlan(source, config, batch_size, seed=0)
    used = []
    for step, _ in enumerate(batches(plan, source, batch_size, config), start=1):
        if step % plan.steps_per_epoch == 0:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
            used.append(round(peak, 1))
            print(f"epoch {len(used)}: {used[-1]} MiB at most so far", flush=True)
        if len(used) == 5:
            break
    return used


def report_masks(arguments: argparse.Namespace, config: DataConfig) -> None:
    """Prints the rate of the loader with masks beside its rate without, of polygons and of panoptic PNG files."""
    size, figures = arguments.batch_size, {}
    config.masks = True
    for kind in ("coco", "coco_panoptic"):
        config.dataset, config.root = kind, str(arguments.data)
        layout = find_layout(config)
        assert layout is not None
        place = layout.splits[layout.find("train", "") or "all"]
        source = config.sources[kind].read(place, strict=False, skip=False, exif="auto", max_level=0, masks=True)
        plan = TrainPlan(source, config, size, seed=0).epoch(0)[: arguments.batches]
        loaders = {
            name: BatchLoader(source, size, scaled_decoding=True, masks=name == "masks") for name in ("masks", "boxes")
        }
        figures[kind] = row = measure(loaders, plan, arguments.rounds)
        print(f"{kind:14} {row['images_per_s']:8.1f} without {row['peer_images_per_s']:8.1f} ratio {row['ratio']:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def main() -> None:
    """Prints the table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--masks", action="store_true", help="compare the loader with masks to the loader without")
    parser.add_argument("--memory", action="store_true", help="also read five epochs and tell the memory")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=8, help="batches of a round (default 8)")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    size, config = arguments.batch_size, DataConfig(num_val_buckets=8)
    if arguments.masks:
        report_masks(arguments, config)
        return
    sources = {split: coco_source(arguments.data, split) for split in ("train", "val")}
    plans = {
        "train": TrainPlan(sources["train"], config, size, seed=0).epoch(0)[: arguments.batches],
        "validation": ValPlan(sources["val"], config, size).batches,
    }
    chosen = np.random.default_rng(0).permutation(len(plans["validation"]))[: arguments.batches]
    plans["validation"] = [plans["validation"][i] for i in chosen]
    collate = numpy_batch if torch is None else torch_batch

    print(f"images/s of processor time, batches of {size}; the peer: Pillow and {collate.__name__.split('_')[0]}")
    figures: dict = {}
    for name, split in (("train", "train"), ("validation", "val")):
        source = sources[split]
        loader = BatchLoader(source, size, scaled_decoding=name == "train" and config.scaled_decoding)
        sides = {"ours": loader, "peer": lambda batch, s=source: collate([peer_picture(s, i) for i in batch.images])}
        figures[name] = measure(sides, plans[name], arguments.rounds)
        row = figures[name]
        print(f"{name:12} {row['images_per_s']:8.1f} peer {row['peer_images_per_s']:8.1f} ratio {row['ratio']:.2f}")
    if arguments.memory:
        figures["memory_mib"] = memory(sources["train"], size)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
