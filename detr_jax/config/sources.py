"""The configuration of data sets: one class per kind, which recognises, checks and opens its own data."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from detr_jax.config.fields import Choice, ranged

if TYPE_CHECKING:
    from detr_jax.config.data import DataConfig
    from detr_jax.data.annotated import AnnotatedDataset
    from detr_jax.data.layouts import Layout
    from detr_jax.data.source import Source

SHAPE_KINDS = ("circle", "square", "triangle", "cross", "ring", "diamond")
"""What the embedded data set can draw."""
BACKGROUND_KINDS = ("plain", "stripes", "checks")
"""Backgrounds of the embedded data set."""


@dataclass(kw_only=True)
class SourceConfig:
    """The base class of data sets. A data set of one's own is a subclass with `open`, as an entry of ``data.sources``.

    A dataclass may hold any fields. They can be set as ``--config.data.sources.NAME.FIELD=VALUE``.
    """

    ignored: ClassVar[tuple[str, ...]] = ()
    """Fields of ``data`` that have no effect with this data set. To set one of them is an error."""
    generated: ClassVar[bool] = False
    """Whether the images are drawn by a program, so that a split without objects is not a mistake of annotations."""
    reads_masks: ClassVar[bool] = False
    """Whether the objects have masks if ``data.masks`` is set."""

    @abstractmethod
    def open(self, split: str, data: "DataConfig") -> "Source":
        """Open a split. The result has what `detr_jax.data.Source` lists; ``faults`` may be missing.

        Args:
          split: "train" or "val".
          data: the section that holds this entry, for fields such as ``root`` that all data sets share.

        Raises:
          DataError: the data cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__} must define open(self, split, data).")

    def open_to_check(self, split: str, data: "DataConfig") -> "Source":
        """Open a split for ``check-data``: errors of single annotations are recorded in ``faults`` and not raised."""
        return self.open(split, data)

    def data_faults(self, data: "DataConfig", name: str) -> Iterator[str]:
        """Sentences about what is missing or contradictory if this entry, called ``name``, is the chosen data set."""
        yield from ()


@dataclass(kw_only=True)
class FolderConfig(SourceConfig):
    """The base class of data sets that are a folder of images and annotations, whose splits follow from its layout."""

    wanted: ClassVar[str]
    """What a folder of this kind has, for messages."""
    tried_last: ClassVar[bool] = False
    """Whether a folder is of this kind only if it is of no other: because all files must be listed to recognise it, or
    because the folder of another kind may hold the same files."""

    def open(self, split: str, data: "DataConfig") -> "Source":
        """Not used: `detr_jax.data.open_source` finds the split in the layout and calls `read`."""
        raise NotImplementedError(f"A {type(self).__name__} is opened by detr_jax.data.open_source(config, split).")

    @abstractmethod
    def recognise(self, root: Path) -> "Layout | None":
        """Find out how a folder is laid out. Returns None if it is not of this kind.

        Raises:
          DataError: it is, but cannot be used.
        """
        raise NotImplementedError(f"{type(self).__name__} must define recognise(self, root).")

    @abstractmethod
    def read(self, place: Any, **reading: Any) -> "AnnotatedDataset":
        """Read a split.

        Args:
          place: the split's value in ``Layout.splits``.
          reading: ``strict`` (raise on the first annotation error), ``skip`` (drop images that cannot be opened),
            ``exif`` and ``max_level`` of ``data``; and ``masks=True`` if ``data.masks`` is set.
        """
        raise NotImplementedError(f"{type(self).__name__} must define read(self, place, **reading).")

    def raise_reason(self, root: Path) -> None:
        """Raise a `DataError` if it is known why a folder that was not recognised cannot be read."""

    def note_unlisted(self, layout: "Layout", opened: Sequence["Source"]) -> None:
        """Note in ``faults`` the files of the folder that belong to no split."""

    def data_faults(self, data: "DataConfig", name: str) -> Iterator[str]:
        """A data set in a folder needs ``data.root``."""
        if not data.root:
            yield "data.root is empty: give the folder of the data set, as --config.data.root=FOLDER."


@dataclass(kw_only=True)
class CocoFiles(FolderConfig):
    """Images and instances JSON files, as COCO and many tools write them."""

    reads_masks = True
    wanted: ClassVar[str] = (
        "an instances JSON (such as annotations/instances_train2017.json or train/_annotations.coco.json)"
    )

    train_images: str = ""
    """Folder of the training images, relative to ``data.root`` unless absolute. Empty, the default: found in it."""
    train_annotations: str = ""
    """Instances JSON of the training images, relative to ``data.root`` unless absolute. Empty, the default: found in
    it."""
    val_images: str = ""
    """Folder of the validation images, relative to ``data.root`` unless absolute. Empty, the default: found in it."""
    val_annotations: str = ""
    """Instances JSON of the validation images, relative to ``data.root`` unless absolute. Empty, the default: found in
    it."""
    allow_outside: bool = False
    """Accept names of images that lead out of ``data.root`` and of the image folder, by ``..`` or as absolute paths.
    Off by default, because annotations of a stranger could name any file of the computer. Links may lead anywhere."""

    def recognise(self, root: Path) -> "Layout | None":
        """COCO's layout, or the splits whose files are given."""
        from detr_jax.data.coco_layouts import recognise_given

        return recognise_given(root, self)

    def read(self, place: Any, **reading: Any) -> "AnnotatedDataset":
        """The `detr_jax.data.CocoDataset` of a split."""
        from detr_jax.data.coco import CocoDataset

        reading.pop("skip")  # sizes are in the JSON, so no image is opened here
        inside = {"root": place.root, "allow_outside": self.allow_outside}
        return CocoDataset(place.images, place.annotations, **inside, **reading)

    def note_unlisted(self, layout: "Layout", opened: Sequence["Source"]) -> None:
        """Note images in the folders of the splits that no annotations list."""
        from detr_jax.data.coco import note_unlisted

        note_unlisted(layout, opened)

    def data_faults(self, data: "DataConfig", name: str) -> Iterator[str]:
        """Files that are given exclude what would look for them."""
        yield from super().data_faults(data, name)
        for split in ("train", "val"):
            given = [field for field in (f"{split}_images", f"{split}_annotations") if getattr(self, field)]
            if given and (value := getattr(data, f"{split}_split")):
                path = f"data.sources.{name}.{given[0]}"
                yield (
                    f"data.{split}_split={value!r} has no effect, as {path}={getattr(self, given[0])!r} is given: drop "
                    f"one of them (--config.{path}= empties it)."
                )
        if data.val_share and self.val_annotations:
            yield (
                f"data.val_share={data.val_share} has no effect, as data.sources.{name}.val_annotations is given: drop "
                "one of them."
            )


@dataclass(kw_only=True)
class CocoPanopticFiles(FolderConfig):
    """Images, panoptic JSON files, and PNG files of segment ids, as COCO has them (Kirillov et al., 2019)."""

    reads_masks = True
    tried_last = True
    wanted: ClassVar[str] = "a panoptic JSON (such as annotations/panoptic_train2017.json) and its folder of PNG files"

    def recognise(self, root: Path) -> "Layout | None":
        """COCO's layout."""
        from detr_jax.data.coco_panoptic import recognise_panoptic

        return recognise_panoptic(root)

    def read(self, place: Any, **reading: Any) -> "AnnotatedDataset":
        """The `detr_jax.data.CocoPanopticDataset` of a split."""
        from detr_jax.data.coco_panoptic import CocoPanopticDataset

        reading.pop("skip")  # sizes are in the JSON, so no image is opened here
        return CocoPanopticDataset(place.images, place.annotations, place.segments, **reading)


class YoloRows(Choice):
    """What a row of a YOLO label file holds after its class."""

    AUTO = "auto"
    BOX = "box"
    POLYGON = "polygon"
    POSE = "pose"


@dataclass(kw_only=True)
class YoloFiles(FolderConfig):
    """Images, text files of labels and a data.yaml, as YOLO's tools write them."""

    reads_masks = True
    wanted: ClassVar[str] = "a data.yaml or classes.txt with text files of labels"

    file: str = ""
    """File that names the classes and the images of each split, relative to ``data.root`` unless absolute. Empty, the
    default: found in it."""
    rows: YoloRows = YoloRows.AUTO
    """What a row of a label file holds after its class: "box" (four numbers, whatever follows), "polygon" (corners),
    "pose" (box and key points) or "auto", the default: what data.yaml and all rows together say."""
    allow_outside: bool = False
    """Accept folders, lists and images outside of ``data.root`` and of the folder of `file`, which data.yaml or a list
    names. Off by default, because files of a stranger could name any file of the computer. Links may lead anywhere."""

    def recognise(self, root: Path) -> "Layout | None":
        """The layout that data.yaml, or the names of the files, describe."""
        from detr_jax.data.yolo import recognise_yolo

        return recognise_yolo(root, self.file, allow_outside=self.allow_outside)

    def read(self, place: Any, **reading: Any) -> "AnnotatedDataset":
        """The `detr_jax.data.YoloDataset` of a split."""
        from detr_jax.data.yolo import YoloDataset

        return YoloDataset(*place, rows=self.rows, allow_outside=self.allow_outside, **reading)

    def raise_reason(self, root: Path) -> None:
        """Raise what is wrong with data.yaml."""
        from detr_jax.data.yolo_images import raise_outside
        from detr_jax.data.yolo_layout import description_file, read_layout

        if self.file or description_file(root):
            raise_outside(read_layout(root / self.file, root, allow_outside=self.allow_outside))


class FirstPixel(Choice):
    """Whether pixels are counted from 1."""

    AUTO = "auto"
    TRUE = "true"
    FALSE = "false"


@dataclass(kw_only=True)
class VocFiles(FolderConfig):
    """Images and XML files, as Pascal VOC has them."""

    wanted: ClassVar[str] = "XML files of annotations (next to the images, or in Annotations/)"
    tried_last: ClassVar[bool] = True

    one_based: FirstPixel = FirstPixel.AUTO
    """Whether corners are pixels counted from 1 and included ("true"), as in the official sets, or edges counted from 0
    ("false"). "auto", the default: what the numbers of the whole set say."""

    def recognise(self, root: Path) -> "Layout | None":
        """The layout that the names of the files show."""
        from detr_jax.data.voc import recognise_voc

        return recognise_voc(root)

    def read(self, place: Any, **reading: Any) -> "AnnotatedDataset":
        """The `detr_jax.data.VocDataset` of a split."""
        from detr_jax.data.voc import VocDataset

        one_based = {"auto": None, "true": True, "false": False}[self.one_based]
        return VocDataset(*place, one_based=one_based, **reading)


@dataclass(kw_only=True)
class LabelmeFiles(FolderConfig):
    """Images and labelme's JSON files, one per image."""

    reads_masks = True
    wanted: ClassVar[str] = "JSON files of labelme"
    tried_last: ClassVar[bool] = True

    def recognise(self, root: Path) -> "Layout | None":
        """The layout that the JSON files show."""
        from detr_jax.data.labelme import recognise_labelme

        return recognise_labelme(root)

    def read(self, place: Any, **reading: Any) -> "AnnotatedDataset":
        """The labelme data set of a split."""
        from detr_jax.data.labelme import LabelmeDataset

        return LabelmeDataset(*place, **reading)


@dataclass(kw_only=True)
class TfdsConfig(SourceConfig):
    """A data set that TensorFlow Datasets has prepared. ``data.root`` is its data_dir (empty: its default)."""

    ignored: ClassVar[tuple[str, ...]] = ("val_share",)

    name: str = ""
    """Name of the data set, such as "coco/2017". There is no default."""
    val_annotations: str = ""
    """Instances JSON to evaluate against, joined by image id and relative to ``data.root`` unless absolute, because
    TFDS cuts the areas of coco/2017 to whole numbers. Empty, the default: evaluate against what TFDS has."""

    def open(self, split: str, data: "DataConfig") -> "Source":
        """Open a split, "train" or ``data.train_split``, "validation" or ``data.val_split``."""
        return self._open(split, data, strict=True)

    def open_to_check(self, split: str, data: "DataConfig") -> "Source":
        """Open a split with the errors of single annotations in its ``faults``."""
        return self._open(split, data, strict=False)

    def _open(self, split: str, data: "DataConfig", strict: bool) -> "Source":
        try:
            from detr_jax.data.tfds import open_tfds  # takes a second to import, and much memory
        except Exception as error:  # it is missing, or another package's protobuf does not fit: any kind of error
            from detr_jax.data.source import DataError

            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                "data.dataset=tfds needs the package tensorflow-datasets, which cannot be imported "
                f"({type(error).__name__}: {reason}): install it again with pip install --upgrade tensorflow-datasets, "
                "or use another data set; everything else works without it."
            ) from error
        return open_tfds(self, data, split, strict=strict)

    def data_faults(self, data: "DataConfig", name: str) -> Iterator[str]:
        """The data set must be named."""
        if not self.name:
            path = f"data.sources.{name}.name"
            yield f"{path} is empty: give the name of a prepared data set, as --config.{path}=coco/2017."


@dataclass(kw_only=True)
class ShapesConfig(SourceConfig):
    """The embedded data set: circles, squares and triangles, or other shapes, drawn from a seed. Nothing is downloaded.

    The defaults are small enough for a CPU to learn them in minutes.
    """

    ignored: ClassVar[tuple[str, ...]] = ("train_split", "val_split", "val_share", "exif", "max_level", "root")
    generated: ClassVar[bool] = True
    reads_masks = True

    train_images: int = 4096
    """Number of training images. With 4096, the preset shapes reaches an AP of 0.64."""
    val_images: int = 512
    """Number of validation images, an eighth of the training images."""
    min_size: int = 48
    """Smallest height and width of an image, in pixels."""
    max_size: int = 64
    """Largest height and width of an image, in pixels. 64 fits the one bucket of the preset shapes."""
    max_objects: int = ranged(4, least=0)
    """The most objects of an image. Their number is drawn evenly from 0 to it, as far as there is room."""
    kinds: tuple[str, ...] = ("circle", "square", "triangle")
    """The classes, labelled 0, 1, ...: "circle", "square", "triangle", "cross", "ring" or "diamond"."""
    backgrounds: tuple[str, ...] = ()
    """Classes of backgrounds for panoptic data, labelled after the kinds: "plain", "stripes" or "checks". Each image
    has one or two of them, and they are objects too. Empty, the default: none."""
    seed: int = ranged(0, least=0)
    """Seed from which all images are drawn. Another seed gives other images of the same kind."""

    def open(self, split: str, data: "DataConfig") -> "Source":
        """Draw a split."""
        from detr_jax.data.shapes import ShapesDataset

        return ShapesDataset(self, split, masks=data.masks)

    def faults(self, path: str) -> Iterator[str]:
        """Kinds that are not known or given twice, and sizes in the wrong order."""
        if not self.kinds or not set(self.kinds) <= set(SHAPE_KINDS):
            yield f"{path}kinds={self.kinds} must hold one or more of {', '.join(map(repr, SHAPE_KINDS))}."
        elif len(set(self.kinds)) < len(self.kinds):
            yield f"{path}kinds={self.kinds} must not hold a kind twice."
        if not set(self.backgrounds) <= set(BACKGROUND_KINDS) or len(set(self.backgrounds)) < len(self.backgrounds):
            known = ", ".join(map(repr, BACKGROUND_KINDS))
            yield f"{path}backgrounds={self.backgrounds} must hold some of {known}, each once."
        if self.min_size > self.max_size:
            yield f"{path}min_size={self.min_size} must not be above {path}max_size={self.max_size}."


def default_sources() -> dict[str, SourceConfig]:
    """The data sets that are known, by the name that ``data.dataset`` selects."""
    return {
        "coco": CocoFiles(),
        "coco_panoptic": CocoPanopticFiles(),
        "yolo": YoloFiles(),
        "voc": VocFiles(),
        "labelme": LabelmeFiles(),
        "tfds": TfdsConfig(),
        "shapes": ShapesConfig(),
    }
