"""`ShapesDataset`: random circles, squares, triangles and other shapes on noisy backgrounds, drawn from a seed."""

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from detr_jax.config import ShapesConfig
from detr_jax.data.masks import Bitmaps, Masks, as_text, encoded
from detr_jax.data.panoptic_png import Panoptic, write_png
from detr_jax.data.source import Faults, Objects, Sample

# The pixels of each shape. The arguments are y and x from the centre, and the radius.
_INSIDE: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "circle": lambda y, x, r: y**2 + x**2 <= r**2,
    "square": lambda y, x, r: (np.abs(y) <= r) & (np.abs(x) <= r),
    "triangle": lambda y, x, r: (np.abs(y) <= r) & (np.abs(x) <= (y + r) / 2),  # stands on its base
    "cross": lambda y, x, r: (np.maximum(np.abs(y), np.abs(x)) <= r) & (np.minimum(np.abs(y), np.abs(x)) <= r / 3),
    "ring": lambda y, x, r: (y**2 + x**2 <= r**2) & (y**2 + x**2 >= (r / 2) ** 2),
    "diamond": lambda y, x, r: np.abs(y) + np.abs(x) <= r,
}
# The upper level (1) or the lower one (0) of each pixel of a background. The arguments are rows and columns.
_TEXTURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda y, x: np.full(y.shape, 0.5),
    "stripes": lambda y, x: y // (_PERIOD // 2) % 2,
    "checks": lambda y, x: (y // (_PERIOD // 2) + x // (_PERIOD // 2)) % 2,
}
_PLACEMENT_TRIES = 20
_REGION_SHARE = (0.3, 0.7)  # of a side, where two backgrounds may meet
_TEXTURE = 40  # of 255, between the two levels of stripes and checks
_PERIOD = 8  # of stripes and checks, in pixels
_KEPT_BYTES = 128 * 2**20  # bytes of drawn images that are kept for later epochs
_MIN_CONTRAST = 90  # of 255, between an object and the background colour in one channel or more


class Drawing(NamedTuple):
    """A drawn image and its objects. Dimensions: ``H, W`` pixels, ``n`` objects."""

    image: np.ndarray
    """[H, W, 3] uint8."""
    masks: np.ndarray
    """[n, H, W] bool, the pixels of each object. No two objects share a pixel. Backgrounds come last."""
    objects: Objects


class ShapesDataset:
    """Images of random size with 0 to ``max_objects`` objects each. Boxes are tight to the drawn pixels.

    Image ``i`` of a split depends only on (seed, split, i). The splits share no image.

    With ``config.backgrounds``, the classes of the backgrounds follow those of the shapes, and backgrounds are objects
    to train on. They are not in `ground_truth`, because COCO evaluates boxes and masks of things only.

    Args:
      config: the number, sizes and content of the images.
      split: "train" or "val".
      masks: give the objects their masks, and the ground truth its run lengths.
    """

    def __init__(self, config: ShapesConfig, split: str, *, masks: bool = False):
        self.config = config
        self.reads_masks = masks
        self.categories = dict(enumerate((*config.kinds, *config.backgrounds)))
        self.stuff_labels = frozenset(range(len(config.kinds), len(self.categories)))
        self.category_ids: dict[int, int] = {}
        self.max_objects = config.max_objects + min(2, len(config.backgrounds))
        self.faults = Faults("shapes")
        self._kept: dict[int, Sample] = {}
        self._split = {"train": 0, "val": 1}[split]
        length = config.train_images if split == "train" else config.val_images
        self.image_ids = range(length)
        rng = np.random.default_rng((config.seed, self._split))
        self.sizes = rng.integers(config.min_size, config.max_size, size=(length, 2), endpoint=True)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}  # a worker process draws its own images

    def draw(self, index: int) -> Drawing:
        """Draws an image.

        Raises:
          IndexError: ``index`` is out of range.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"Image {index} does not exist: this data set has {len(self)} images, numbered from 0.")
        rng = np.random.default_rng((self.config.seed, self._split, index))
        height, width = map(int, self.sizes[index])
        background = rng.integers(0, 256, size=3)
        image = _noisy(rng, background, 40, (height, width))
        regions = self._regions(index, image)

        masks: list[np.ndarray] = []
        labels: list[int] = []
        occupied = np.zeros((height, width), bool)
        for _ in range(rng.integers(0, self.config.max_objects, endpoint=True)):
            for _ in range(_PLACEMENT_TRIES):  # objects must not touch, and one that finds no free place is dropped
                label = int(rng.integers(len(self.config.kinds)))
                mask = _shape_mask(rng, self.config.kinds[label], height, width)
                if mask.any() and not (mask & occupied).any():
                    occupied |= _grown(mask)
                    color = _contrasting_color(rng, background)
                    image[mask] = _noisy(rng, color, 15, (int(mask.sum()),))
                    masks.append(mask)
                    labels.append(label)
                    break
        for region, label in regions:
            region &= ~np.any(masks, axis=0) if masks else True
            masks.append(region)
            labels.append(label)
        boxes = np.array([_tight_box(mask) for mask in masks], np.float32).reshape(-1, 4)
        return Drawing(
            image,
            np.array(masks, bool).reshape(-1, height, width),
            Objects(boxes, np.array(labels, np.int32)),
        )

    def _regions(self, index: int, image: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """Draws the backgrounds into an image [H, W, 3]. Returns pixels [H, W] bool and the label of each."""
        kinds = self.config.backgrounds
        if not kinds:
            return []
        rng = np.random.default_rng((self.config.seed, self._split, index, 1))  # the shapes stay what they are
        place = np.meshgrid(*map(np.arange, image.shape[:2]), indexing="ij")
        number = int(rng.integers(1, min(2, len(kinds)), endpoint=True))
        axis = int(rng.integers(2))
        border = round(rng.uniform(*_REGION_SHARE) * image.shape[axis])
        beyond = place[axis] >= border
        found = []
        for region, kind in zip(
            (~beyond, beyond), rng.choice(len(kinds), number, replace=False).tolist(), strict=False
        ):
            region = np.ones_like(beyond) if number == 1 else region
            levels = _TEXTURES[kinds[kind]](*place)[..., None] * _TEXTURE
            image[region] = np.clip(image.astype(np.int16) + levels - _TEXTURE // 2, 0, 255)[region]
            found.append((region, len(self.config.kinds) + kind))
        return found

    def __getitem__(self, index: int) -> Sample:
        """An image, [H, W, 3] uint8 RGB, and its objects.

        Boxes are xyxy in pixels. Labels are positions in ``config.kinds``.
        """
        sample = self._kept.get(index)
        if sample is None:
            image, masks, objects = self.draw(index)
            if self.reads_masks:
                objects = Objects(objects.boxes, objects.labels, Masks.of(Bitmaps(masks)))
            sample = Sample(image, objects)
            channels = 3 + self.reads_masks * self.max_objects
            if (len(self._kept) + 1) * channels * self.config.max_size**2 <= _KEPT_BYTES:
                self._kept[index] = sample
        return sample

    def objects(self, index: int) -> Objects:
        """The objects of an image: boxes xyxy in pixels, and labels."""
        return self[index].objects

    def panoptic(self, index: int) -> Panoptic:
        """The segments of an image. Pixels of no object are void, unless there are backgrounds."""
        _, masks, objects = self.draw(index)
        ids = np.arange(1, len(masks) + 1)
        number_of_pixel = (masks * ids[:, None, None]).sum(axis=0, dtype=np.int32)
        areas = masks.sum(axis=(1, 2))
        return Panoptic(number_of_pixel, ids, objects.labels.astype(np.int64), areas, np.zeros(len(ids), bool))

    @functools.cache  # noqa: B019 (one entry for as long as the data set lives)
    def ground_truth(self) -> dict[str, Any]:
        """All shapes as an instances JSON. The area of a shape is the number of its pixels."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, image_id in enumerate(self.image_ids):
            height, width = map(int, self.sizes[index])
            images.append({"id": image_id, "height": height, "width": width})
            _, masks, objects = self.draw(index)
            for mask, (x0, y0, x1, y1), label in zip(masks, objects.boxes.tolist(), objects.labels, strict=True):
                if int(label) in self.stuff_labels:
                    continue
                segmentation = {"segmentation": encoded(mask)} if self.reads_masks else {}
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": int(label),
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "area": int(mask.sum()),
                        "iscrowd": 0,
                        **segmentation,
                    }
                )
        things = (label for label in self.categories if label not in self.stuff_labels)
        categories = [{"id": label, "name": self.categories[label]} for label in things]
        return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(
    config: ShapesConfig,
    root: Path,
    *,
    suffix: str = ".png",
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> None:
    """Writes both splits in COCO's official layout: ``train2017/``, ``val2017/`` and ``annotations/``.

    The annotations have masks. With backgrounds, they are written in COCO's panoptic form too.

    Args:
      config: the number, sizes and content of the images.
      root: a new folder, which is created.
      suffix: ".png" is lossless. ".jpg" is smaller, and pixels differ by a few levels.
      progress: wraps the indices of each split, to show the progress.
    """
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        dataset = ShapesDataset(config, split, masks=True)
        folder = root / f"{split}2017"
        folder.mkdir()
        form = dataset.ground_truth()
        for index in progress(range(len(dataset))):
            form["images"][index]["file_name"] = name = f"{dataset.image_ids[index]:06d}{suffix}"
            Image.fromarray(dataset[index].image).save(folder / name, quality=95, subsampling=0)
        for annotation in form["annotations"]:
            annotation["segmentation"] = as_text(annotation["segmentation"])
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(form))
        if config.backgrounds:
            _write_panoptic(dataset, form["images"], root / "annotations" / f"panoptic_{split}2017")


def _write_panoptic(dataset: ShapesDataset, images: list[dict[str, Any]], folder: Path) -> None:
    """Writes the segments of a split: a folder of PNG files, and a JSON file of the same name."""
    folder.mkdir()
    annotations = []
    for index, image in enumerate(images):
        found = dataset.panoptic(index)
        name = Path(image["file_name"]).with_suffix(".png").name
        write_png(folder / name, found.ids)
        segments = [
            {"id": i, "category_id": label, "area": area, "bbox": _xywh(_tight_box(found.ids == i)), "iscrowd": 0}
            for i, label, area in zip(
                *(x.tolist() for x in (found.segment_ids, found.labels, found.areas)), strict=True
            )
        ]
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})
    categories = [
        {"id": label, "name": name, "isthing": int(label not in dataset.stuff_labels)}
        for label, name in dataset.categories.items()
    ]
    form = {"images": images, "annotations": annotations, "categories": categories}
    folder.with_suffix(".json").write_text(json.dumps(form))


def _xywh(box: tuple[int, int, int, int]) -> list[int]:
    x0, y0, x1, y1 = map(int, box)
    return [x0, y0, x1 - x0, y1 - y0]


def _noisy(rng: np.random.Generator, color: np.ndarray, noise: int, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels [*shape, 3] uint8 of a colour [3]. Each value differs from it by at most ``noise``."""
    offsets = rng.integers(-noise, noise, size=(*shape, 3), dtype=np.int16, endpoint=True)
    return np.clip(color.astype(np.int16) + offsets, 0, 255).astype(np.uint8)


def _shape_mask(rng: np.random.Generator, kind: str, height: int, width: int) -> np.ndarray:
    """The pixels of a shape of random size and position inside the image, [height, width] bool."""
    shortest = min(height, width)
    side = rng.uniform(0.25, 0.5) * shortest
    center_y = rng.uniform(side / 2, height - side / 2)
    center_x = rng.uniform(side / 2, width - side / 2)
    y = np.arange(height)[:, None] + 0.5 - center_y
    x = np.arange(width)[None, :] + 0.5 - center_x
    return _INSIDE[kind](y, x, side / 2)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its neighbouring pixels, so that no two objects touch."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _contrasting_color(rng: np.random.Generator, background: np.ndarray) -> np.ndarray:
    while True:
        color = rng.integers(0, 256, size=3)
        if np.abs(color - background).max() >= _MIN_CONTRAST:
            return color


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
