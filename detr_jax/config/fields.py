"""The fields of a configuration, their defaults and what they mean.

Numbers of the paper stand here, once, as defaults: they are those of DETR R50 on COCO.
"""

from dataclasses import dataclass, field

LEARNED_CELLS = 50  # rows and columns in the original's tables of learned positions


SHAPE_KINDS = ("circle", "square", "triangle", "cross", "ring", "diamond")
"""What the embedded data set can draw."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's red, green and blue in 0..1."""


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the field, its value and what would be right."""


@dataclass(kw_only=True)
class BackboneConfig:
    """A residual network."""

    block: str = "bottleneck"
    """"basic" (ResNet-18, 34) or "bottleneck" (ResNet-50, 101)."""
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of each stage, one to four stages."""
    width: int = 64
    """Channels of the stem and of the first stage's 3x3 convolutions; doubled at every stage."""
    stem: str = "imagenet"
    """"imagenet" (7x7 convolution and max-pool, stride 4) or "small" (3x3 convolution, stride 2)."""
    norm: str = "frozen_batch"
    """"frozen_batch" for pretrained weights, "group" when training from scratch."""
    dilation: bool = False
    """DC5: the last stage keeps its resolution and is dilated instead."""

    @property
    def expansion(self) -> int:
        """Output channels of a block over its inner channels."""
        return 4 if self.block == "bottleneck" else 1

    @property
    def out_channels(self) -> int:
        """Channels of the last stage."""
        return self.width * 2 ** (len(self.blocks) - 1) * self.expansion

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the last stage."""
        return (4 if self.stem == "imagenet" else 2) * 2 ** (len(self.blocks) - 1 - self.dilation)


@dataclass(kw_only=True)
class ModelConfig:
    """The detector (DETR, section 3.2 and appendix A)."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    num_classes: int = 91
    """Highest label plus 1 (COCO's raw ids reach 90); the head has one output more, for "no object". 0 when a training
    starts: from the data; the checkpoint holds the number."""
    num_queries: int = 100
    """More than the objects that an image can have. 0 when a training starts: those of the checkpoint that it follows,
    or else 100; the checkpoint holds the number."""
    hidden_dim: int = 256
    num_heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward_dim: int = 2048
    dropout: float = 0.1
    pre_norm: bool = False
    """Layer norm before each sublayer in place of after it."""
    position_embedding: str = "sine"
    """"sine" or "learned"."""
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    """This and the next: mean and standard deviation by which red, green and blue in 0..1 are normalised, those of the
    pretrained weights."""
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    mask_padding: bool = True
    """Keep padding out of the backbone, so that it never changes an answer; False is the original on a padded batch."""
    dtype: str = "float32"
    """Compute type of backbone and encoder, "float32" or "bfloat16". Parameters, norms, residuals, softmax, the decoder
    (of few operations, but queries that hardly differ must stay so), heads and losses are float32 always."""
    remat: str = "none"
    """What the backward pass computes again in place of keeping it in memory: "none", "backbone" (every residual
    block), "transformer" (every layer) or "all". The result is the same."""


@dataclass(kw_only=True)
class LossConfig:
    """Matching cost and set loss (DETR, section 3.1 and appendix A.2)."""

    matcher: str = "scipy"
    """"scipy" (linear_sum_assignment on the host) or "device" (the same optimum on the accelerator)."""
    class_weight: float = 1.0
    bbox_weight: float = 5.0
    giou_weight: float = 2.0
    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    eos_coefficient: float = 0.1
    """Weight of "no object" in the classification loss."""
    auxiliary: bool = True
    """Train every decoder layer's predictions, not only the last's."""


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


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW and its schedule (DETR, section 4 and appendix A.4)."""

    learning_rate: float = 1e-4
    backbone_learning_rate: float = 1e-5
    """0 freezes the whole backbone."""
    weight_decay: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.999
    clip_norm: float = 0.1
    """Largest global norm of the trainable parameters' gradient; 0: no clipping."""
    schedule: str = "step"
    """"step" (a tenth from drop_epoch on), "cosine" (to zero at the end) or "constant"."""
    drop_epoch: int = 200
    warmup_steps: int = 0
    """Optimiser steps over which the learning rates rise linearly from 0."""
    frozen: tuple[str, ...] = ("backbone/stem", "backbone/stages/0")
    """Parameters that are not trained, by the beginning of their path."""


@dataclass(kw_only=True)
class TrainingConfig:
    """The run: length, batch, log, checkpoints."""

    batch_size: int = 64
    """Images of an optimiser step, over all devices and accumulated parts."""
    accumulate: int = 1
    """Parts that a batch is computed in, one after another, to save memory; the result is the whole batch's."""
    epochs: int | None = 300
    steps: int | None = None
    """Optimiser steps; takes the place of epochs where given."""
    seed: int = 0
    init_from: str = ""
    """A checkpoint to start from, of any kind that `detr_jax.weights.read_pretrained` reads; empty: start anew."""
    follow_checkpoint: bool = False
    """Build the model of `init_from` whatever ``model`` says, except for num_classes, dropout, dtype, remat, and
    num_queries where it is not 0. Of a backbone alone, the backbone and its pixel mean and deviation."""
    follow_image_sizes: bool = True
    """With `follow_checkpoint`: also take the image sizes of ``data`` (sides, crops, rounding) from the checkpoint, if
    all of them have their default values. False keeps the values of ``data``."""
    ema_decay: float = 0.0
    """Decay of the moving average of the parameters that is then evaluated; 0: none."""
    log_every: int = 50
    """Optimiser steps between two lines of the log."""
    fsdp: bool = False
    """Share parameters, their moving average and the optimiser's state out over the devices, as fully sharded data
    parallelism does, where each device holds them whole otherwise: less memory, more communication."""
    checkpoint_every: int = 1000
    """Optimiser steps between two checkpoints; there is always one at the end."""
    keep_checkpoints: int = 3
    """Of the newest; that of the best validation is kept beside them."""
    early_stop: int = 0
    """Validations in a row without a better AP after which the run ends; 0: never."""


@dataclass(kw_only=True)
class EvaluationConfig:
    """Validation during training and at its end."""

    every_epochs: int = 1
    """Epochs between two validations; 0: at the end only."""
    batch_size: int = 8
    pictures: int = 12
    """Validation images drawn into predictions.png at the end of a run, and those of the snapshots."""
    snapshots: int = 32
    """Times of a run, denser in its beginning, at which what the model finds in those images is kept, from which
    ``detr-jax plot`` makes an animation; 0: none."""
    picture_threshold: float = 0.5
    """Lowest score of a drawn prediction."""


@dataclass(kw_only=True)
class Config:
    """Everything that a run needs to know."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
