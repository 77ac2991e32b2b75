"""The configuration of data sets and of the preparation of images."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from detr_jax.config.augmentation import Augmentation, DetrAugmentation
from detr_jax.config.fields import Choice, ranged
from detr_jax.config.sources import FolderConfig, SourceConfig, default_sources

AUTO = "auto"
"""The value of ``data.dataset`` that has the kind of a folder recognised."""


class Exif(Choice):
    """What to do with an orientation that EXIF records in an image."""

    AUTO = "auto"
    APPLY = "apply"
    IGNORE = "ignore"


class Rounding(Choice):
    """How the sides of an image are rounded to pixels after resizing."""

    ORIGINAL = "original"
    TRANSFORMERS = "transformers"
    NEAREST = "nearest"
    DOWN = "down"


class OnError(Choice):
    """How to handle a training image that cannot be read."""

    RAISE = "raise"
    SKIP = "skip"


@dataclass(kw_only=True)
class DataConfig:
    """Where images come from and how they are prepared."""

    dataset: str = AUTO
    """The data set: an entry of `sources`, such as "coco", "coco_panoptic", "yolo", "voc", "labelme", "tfds" or
    "shapes". "auto", the default: the kind of folder that `root` looks like."""
    root: str = ""
    """Folder of the data set. Paths in other fields are relative to it unless absolute. For "tfds" it is TFDS's
    data_dir (empty: TFDS's default)."""
    sources: dict[str, SourceConfig] = field(default_factory=default_sources)
    """The data sets that `dataset` can select, by name. An entry of your own is a `SourceConfig` with an ``open``
    method. The default entries that a new `DataConfig` is not given are added to it."""
    train_split: str = ""
    """Split to train on: the name of its folder or list, or for "tfds" for example "train[:90%]". Empty, the default:
    the split that is called "train" or "training"."""
    val_split: str = ""
    """Split to evaluate on, such as "test". Empty, the default: "val", "valid" or "validation", whichever exists."""
    val_share: float = ranged(0.0, most=1)
    """Fraction of the images to evaluate on instead of training on them, if the data set has no split for that. A hash
    of the file names selects the images, so they are the same in every run. Copies of an image under other names may be
    in both parts: ``detr-jax check-data`` lists them. 0, the default: none."""
    allow_empty: bool = False
    """Accept a split in which no image has an object to train on. By default that is an error, because it is usually a
    mistake."""
    exif: Exif = Exif.AUTO
    """What to do with an orientation that EXIF records in an image. "auto", the default: apply it, as viewers do,
    unless the annotated size is the size of the stored pixels only. "apply": always. "ignore": never. Prediction
    follows the same rule."""
    max_level: float = 0.0
    """Highest level that can occur in grey images of more than 8 bits, such as 4095 for 12 bits in 16; it becomes 255.
    ``detr-jax check-data`` measures it. 0, the default: the highest level of the file's own type."""
    masks: bool = False
    """Read the masks of the objects too, for a model with ``model.masks``. Off by default, because masks take time and
    memory."""
    augmentation: Augmentation = field(default_factory=DetrAugmentation)
    """How training images are changed at random. By default as in the paper."""

    sizes_from_data: bool = False
    """When a training starts, set the image sizes below from the images and objects of the data: small objects get
    about 24 pixels, within limits. A size that is not the default is kept, and the others follow a `val_short_side`
    that is set. Off by default: the paper's sizes."""
    train_short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Short sides to resize training images to, in pixels, drawn evenly. The defaults are the paper's. Empty: no
    resizing."""
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    """Short sides to resize to before a random crop, in pixels, drawn evenly; half of the images are cropped. The
    defaults are the paper's. Empty: never crop."""
    crop_min: int = 384
    """Smallest width and height of a crop, in pixels (the paper's)."""
    crop_max: int = 600
    """Largest width and height of a crop, in pixels (the paper's). They are drawn from crop_min to the smaller of
    crop_max and the image's side, both included."""
    val_short_side: int = ranged(800, least=0)
    """Short side of validation images, in pixels (the paper's); 0: no resizing."""
    max_long_side: int = 1333
    """Limit of the long side after resizing, in pixels (the paper's). Rounding may exceed it by a few pixels, as in the
    original code."""
    resize_rounding: Rounding = Rounding.ORIGINAL
    """How sides are rounded to pixels after resizing. "original", the default: as facebookresearch/detr (the short
    side, then the long side down). "transformers": the same, but the long side never exceeds its limit. "nearest": both
    sides to the nearest pixel, as detectron2 and mmdetection. "down": both sides down."""
    flip: bool = True
    """Flip half of the training images left to right, as the paper does."""

    train_buckets: tuple[tuple[int, int], ...] = ()
    """Buckets for training: shapes (height, width) in pixels to which images are padded, one compilation each. Empty,
    the default: chosen from the sizes of the data."""
    num_train_buckets: int = 12
    """The most buckets to choose for training. A run chooses fewer if one more would save less padding over all its
    steps than its compilation costs. It writes the number to config.json, and keeps it when it is resumed. 12 is
    a number that compiles in minutes."""
    val_buckets: tuple[tuple[int, int], ...] = ()
    """Buckets for validation and prediction, as `train_buckets`."""
    num_val_buckets: int = 6
    """The most buckets to choose for validation, as `num_train_buckets`, over all validations of the run. Half as many,
    because validation has one short side only."""
    num_threads: int = ranged(0, least=0)
    """Threads that read and prepare images in this process, or in each worker process. 0, the default: one per core,
    divided by the number of processes."""
    num_workers: int = ranged(0, least=0)
    """Worker processes that read and prepare images instead of threads. 0, the default: none, because threads are
    enough on most machines and need less memory."""
    prefetch: int = 2
    """Batches prepared ahead. 2 hide the time of a slow batch; each needs the memory of its images."""
    scaled_decoding: bool = True
    """Decode large training JPEGs at a half, quarter or eighth of their size if that is not below the size needed. This
    is much faster, and changes pixels by a level or two. Validation images are always decoded at full resolution."""
    on_error: OnError = OnError.RAISE
    """How to handle an unreadable training image. "raise", the default: stop and report the file. "skip": substitute
    another image of the batch and log it; images whose size cannot be read are dropped at start-up. Unreadable
    validation images always stop the run."""
    max_skipped: float = ranged(0.01, most=1)
    """Largest fraction of skipped images before the run stops, relative to the images seen so far or one epoch,
    whichever is larger; also the largest fraction that may be dropped at start-up. One in a hundred is more than a
    sound data set has."""

    def __post_init__(self) -> None:
        self.sources = {**default_sources(), **self.sources}

    def faults(self, path: str) -> Iterator[str]:
        """Fields that contradict one another."""
        if self.dataset != AUTO and self.dataset not in self.sources:
            known = ", ".join(map(repr, (AUTO, *self.sources)))
            yield f"{path}dataset={self.dataset!r} is not known: it must be one of {known}."
        if self.crop_short_sides and min(self.crop_short_sides) < self.crop_min:
            yield (
                f"{path}crop_min={self.crop_min} must not be above the smallest of "
                f"{path}crop_short_sides={self.crop_short_sides}."
            )
        if self.crop_short_sides and self.crop_max < self.crop_min:
            yield f"{path}crop_max={self.crop_max} must not be below {path}crop_min={self.crop_min}."

    def source_faults(self) -> Iterator[str]:
        """What the chosen data set lacks to be opened, or contradicts. Prediction needs none of it."""
        if self.val_share and self.val_split:
            yield f"data.val_share={self.val_share} has no effect, as data.val_split is given: drop one of them."
        chosen = self.chosen()
        if self.masks and self.dataset != AUTO:
            for name, source in chosen.items():
                if not source.reads_masks:
                    known = ", ".join(entry for entry, other in self.sources.items() if other.reads_masks)
                    yield f"data.masks=True needs a data set with masks ({known}), and {name} has none."
        yield from dict.fromkeys(fault for name in chosen for fault in chosen[name].data_faults(self, name))

    @property
    def generated(self) -> bool:
        """Whether the images are drawn by a program. An entry that a folder decides is never generated."""
        return self.dataset in self.sources and self.sources[self.dataset].generated

    def chosen(self) -> dict[str, SourceConfig]:
        """The entry that `dataset` selects. With "auto": the kinds of folders."""
        if self.dataset != AUTO:
            return {self.dataset: self.sources[self.dataset]} if self.dataset in self.sources else {}
        return {name: source for name, source in self.sources.items() if isinstance(source, FolderConfig)}


IMAGE_SIZES = (
    "train_short_sides",
    "crop_short_sides",
    "crop_min",
    "crop_max",
    "val_short_side",
    "max_long_side",
    "resize_rounding",
)
"""The fields of `DataConfig` that say how large a model sees its images."""
