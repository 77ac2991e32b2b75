"""The configuration of data sets and of the preparation of images."""

from dataclasses import dataclass, field

SHAPE_KINDS = ("circle", "square", "triangle", "cross", "ring", "diamond")
"""What the embedded data set can draw."""


@dataclass(kw_only=True)
class ShapesConfig:
    """The embedded data set: circles, squares and triangles, or other shapes, drawn from a seed."""

    train_images: int = 4096
    val_images: int = 512
    min_size: int = 48
    """Smallest height and width of an image, in pixels."""
    max_size: int = 64
    max_objects: int = 4
    kinds: tuple[str, ...] = ("circle", "square", "triangle")
    """The classes, labelled 0, 1, ...: "circle", "square", "triangle", "cross", "ring" or "diamond"."""
    seed: int = 0


@dataclass(kw_only=True)
class DataConfig:
    """Where images come from and how they are prepared."""

    dataset: str = "auto"
    """Kind of the data set: "coco" (images and an instances JSON), "yolo" (images, text files and a data.yaml), "voc"
    (images and XML files), "labelme" (images and JSON files), "tfds" (prepared by TensorFlow Datasets), "shapes" (drawn
    on the fly) or "auto": what the folder ``root`` looks like."""
    root: str = ""
    """Folder of the data set. Paths in other fields are relative to it unless absolute. For "tfds" it is TFDS's
    data_dir (empty: TFDS's default)."""
    train_split: str = ""
    """Split to train on: the name of its folder or list, or for "tfds" such as "train[:90%]"; empty: "train"."""
    val_split: str = ""
    """Split to evaluate on, such as "test"; empty: "val", "valid" or "validation", whichever there is."""
    val_share: float = 0.0
    """Share of the images that are evaluated on and not trained on, if the data set has no split for that. Which images
    these are follows from a hash of their file names, so they are the same in every run. Copies of an image under other
    names may be in both parts: ``detr-jax check-data`` names them."""
    allow_empty: bool = False
    """Accept a split in which no image has an object to train on, which is an error otherwise."""
    exif: str = "auto"
    """What to do with an orientation that EXIF notes in an image. "auto": apply it, as viewers do, unless the annotated
    size is that of the stored pixels only. "apply": always. "ignore": never. Prediction follows the same rule."""
    max_level: float = 0.0
    """Highest level that can occur in grey images of more than 8 bits, such as 4095 for 12 bits in 16; it becomes 255.
    0: what the files say. ``detr-jax check-data`` measures it."""
    train_images: str = ""
    """Folder of the training images of "coco"; empty: found in ``root``."""
    train_annotations: str = ""
    """Instances JSON of the training images of "coco"; empty: found in ``root``."""
    val_images: str = ""
    """Folder of the validation images of "coco"; empty: found in ``root``."""
    val_annotations: str = ""
    """Instances JSON of the validation images of "coco"; empty: found in ``root``."""
    yolo_file: str = ""
    """File of "yolo" that names the classes and the images of each split; empty: found in ``root``."""
    yolo_rows: str = "auto"
    """What a row of a "yolo" label file holds after its class: "box" (four numbers, whatever follows), "polygon"
    (corners), "pose" (box and key points) or "auto": what data.yaml and all rows together say."""
    voc_one_based: str = "auto"
    """Whether corners in "voc" files are pixels counted from 1 and included ("true"), as in the official sets, or edges
    counted from 0 ("false"); "auto": what the numbers of the whole set say."""
    tfds_name: str = ""
    """Name of a "tfds" data set, such as "coco/2017"."""
    tfds_val_annotations: str = ""
    """Instances JSON to evaluate "tfds" against, joined by image id, as areas of coco/2017 are cut to whole numbers in
    TFDS; relative to root unless absolute; empty: what TFDS says."""
    shapes: ShapesConfig = field(default_factory=ShapesConfig)

    train_short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    """Short sides to resize to, drawn evenly, in pixels; empty: no resizing."""
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    """Short sides to resize to before a random crop; empty: never crop."""
    crop_min: int = 384
    crop_max: int = 600
    """The crop's width and height are drawn from crop_min to min(side, crop_max), both included, in pixels."""
    val_short_side: int = 800
    """Short side of validation images, in pixels; 0: no resizing."""
    max_long_side: int = 1333
    """Limit of the long side after resizing, in pixels (rounding may pass it by some, as the original's does)."""
    resize_rounding: str = "original"
    """How sides are rounded to pixels after resizing: "original" (facebookresearch/detr: the short side, then the long
    side down), "transformers" (the same, but the long side never passes its limit), "nearest" (detectron2 and
    mmdetection: both sides to the nearest pixel) or "down" (both sides down)."""
    flip: bool = True
    """Flip half of the training images left to right."""

    train_buckets: tuple[tuple[int, int], ...] = ()
    """Bucket shapes (height, width) in pixels, one compilation each; empty: chosen from the data's own sizes."""
    num_train_buckets: int = 12
    """The most buckets to choose for training. A run chooses fewer if one more would save less padding over all its
    steps than its compilation costs. It writes the number to config.json, and keeps it when it is resumed."""
    val_buckets: tuple[tuple[int, int], ...] = ()
    """The same for validation."""
    num_val_buckets: int = 6
    """The same for validation, over all validations of the run."""
    num_threads: int = 0
    """Threads that read and prepare images in this process, or in each worker process; 0: one a core, shared among
    the processes."""
    num_workers: int = 0
    """Worker processes in place of threads; 0: none."""
    prefetch: int = 2
    """Batches prepared ahead."""
    scaled_decoding: bool = True
    """Decode large training JPEGs to a half, quarter or eighth where that is not below the size needed: much faster
    there, and a level or two apart. Validation images are always decoded whole."""
    on_error: str = "raise"
    """What a training image that cannot be read does: "raise" ends the run with its name, "skip" puts another image of
    its batch in its place and tells (or leaves it out from the start, where not even its size is known). A validation
    image that cannot be read always ends the run."""
    max_skipped: float = 0.01
    """Share of the images, at least of an epoch's, that may be skipped before the run ends all the same; also the share
    that may be left out from the start."""


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
