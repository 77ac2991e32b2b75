"""`CocoDataset`: a folder of images and an instances JSON (Lin et al., 2014)."""

import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from detr_jax.data.annotated import AnnotatedFolder
from detr_jax.data.annotation_checks import check_rows
from detr_jax.data.annotation_rows import LARGEST, LONGEST_NAME, UNUSABLE_TEXT, Rows, rows_of_items
from detr_jax.data.image_paths import ImagePaths, unlisted
from detr_jax.data.images import ExifRule
from detr_jax.data.layouts import Layout
from detr_jax.data.source import DataError, Faults, Source
from detr_jax.files import LARGEST_ANNOTATIONS, read_unzipped
from detr_jax.json_files import JsonError, parse_json


class CocoDataset(AnnotatedFolder):
    """The images of a folder with the boxes of an instances JSON.

    Labels are the raw category ids. Crowd annotations are kept for the evaluation only. Images without objects are
    kept. For training, boxes are clipped to their image, and boxes without area are dropped; ``faults`` counts both.
    The evaluation uses the original boxes, as COCO's own evaluation does.

    Args:
      image_folder: the folder that ``file_name`` of each image is relative to.
      annotation_file: the instances JSON, which may be compressed with gzip.
      strict: raise on the first annotation error. If False, the annotation is dropped and recorded in ``faults``.
      exif: see `detr_jax.data.images.decode`.
      max_level: see `detr_jax.data.images.decode`.
      masks: also read the ``segmentation`` of every annotation: polygons or run lengths.
      root: the folder of the data set, which names of images may lead to; by default, only ``image_folder``.
      allow_outside: accept names that lead out of both folders. By default they are errors.

    Raises:
      DataError: a folder or file is missing, the JSON is damaged, or, if ``strict``, an annotation is wrong:
        it names an image or a category that is not listed, or has a field of the wrong type.
    """

    def __init__(
        self,
        image_folder: str | Path,
        annotation_file: str | Path,
        *,
        strict: bool = True,
        exif: ExifRule = "auto",
        max_level: float = 0,
        masks: bool = False,
        root: Path | None = None,
        allow_outside: bool = False,
    ):
        if not Path(image_folder).is_dir():
            raise DataError(
                f"The image folder {image_folder} does not exist: set data.root, "
                "data.sources.coco.train_images and data.sources.coco.val_images to the folders of the images."
            )
        faults = Faults(str(annotation_file))
        rows = read_instances(Path(annotation_file), faults, masks=masks)
        paths = ImagePaths(Path(image_folder), root, allow_outside=allow_outside)
        rows = rows._replace(file_names=paths.found(rows.file_names, faults))
        instances = check_rows(rows, faults, official=True)
        super().__init__(instances, Path(image_folder), strict=strict, exif=exif, max_level=max_level)
        self.annotation_file = Path(annotation_file)


def read_instances(path: Path, faults: Faults, *, masks: bool = False) -> Rows:
    """Reads the annotations of an instances JSON into columns. Items of the wrong type are counted as errors.

    With ``masks``, the ``segmentation`` of every annotation is read too.

    Raises:
      DataError: the file is missing, damaged or not an instances JSON.
    """
    content = read_file(path)
    try:
        return _fast_rows(content, masks)
    except (msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError):
        # The file is damaged, or some values have another type.
        return rows_of_items(_parsed(content, path), faults, masks=masks)


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int
    width: int


class _Annotation(msgspec.Struct, gc=False):
    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: int | None = None


class _MaskAnnotation(_Annotation, gc=False):
    segmentation: msgspec.Raw = msgspec.Raw(b"null")


class _Instances(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _MaskInstances(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[_MaskAnnotation]
    categories: list[_Category]


def _fast_rows(content: bytes, masks: bool) -> Rows:
    """The columns of a file in which every value has the expected type. It is much faster than `rows_of_items`.

    Raises:
      msgspec.DecodeError, UnicodeDecodeError, OverflowError, RecursionError: some value has another type.
    """
    form: Any = msgspec.json.decode(content, type=_MaskInstances if masks else _Instances)
    images, annotations = form.images, form.annotations
    texts = itertools.chain((one.file_name for one in images), (one.name for one in form.categories))
    if any(map(UNUSABLE_TEXT.search, texts)):
        raise msgspec.ValidationError("a text with control characters")
    if any(len(one.name) > LONGEST_NAME for one in form.categories):
        raise msgspec.ValidationError("a class with a long name")
    number = len(annotations)

    def column(values: Any, kind: type, length: int = number) -> np.ndarray:
        return np.fromiter(values, kind, length)

    crowds = column((one.iscrowd or 0 for one in annotations), np.int64)
    areas = column((np.nan if one.area is None else one.area for one in annotations), np.float64)
    boxes = column(itertools.chain.from_iterable(one.bbox for one in annotations), np.float64, 4 * number)
    if ((crowds != 0) & (crowds != 1)).any() or (areas < 0).any() or (areas >= LARGEST).any():
        raise msgspec.ValidationError("an area or iscrowd that is out of range")
    if (np.abs(boxes) >= LARGEST).any():
        raise msgspec.ValidationError("a box that is out of range")
    ids = column((one.id for one in annotations), np.int64)
    return Rows(
        [(one.id, one.name) for one in form.categories],
        column((one.id for one in images), np.int64, len(images)),
        [one.file_name for one in images],
        np.array([(one.height, one.width) for one in images], np.int64).reshape(-1, 2),
        ids,
        column((one.image_id for one in annotations), np.int64),
        column((one.category_id for one in annotations), np.int64),
        boxes.reshape(-1, 4),
        areas,
        crowds,
        lambda row: f"annotation {ids[row]}",
        segmentations=[bytes(one.segmentation) for one in annotations] if masks else None,
    )


def read_file(path: Path) -> bytes:
    """The content of an annotation file, which may be compressed with gzip.

    Raises:
      DataError: the file is missing or cannot be read.
    """
    try:
        return read_unzipped(path, LARGEST_ANNOTATIONS)
    except FileNotFoundError:
        raise DataError(
            f"The annotation file {path} does not exist: set data.root to the folder of the data set, and "
            "data.sources.coco.train_annotations and data.sources.coco.val_annotations to its instances JSON files."
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"The annotation file {path} cannot be read ({error}).") from None


def _parsed(content: bytes, path: Path) -> dict[str, Any]:
    """The JSON object. Only the presence of the three lists is checked.

    Raises:
      DataError: the file is not JSON, or lacks a list.
    """
    try:
        form = parse_json(content, most_nested=None)
    except JsonError as error:
        raise DataError(f"The annotation file {path} cannot be read as JSON ({error}).") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(form, dict) or not isinstance(form.get(key), list):
            raise DataError(
                f"The annotation file {path} has no list {key!r}: an instances JSON holds images, annotations and "
                "categories."
            )
    return form


def note_unlisted(layout: Layout, sources: Sequence[Source]) -> None:
    """Note images in COCO's folders that no annotations list; not those of folders with a split that was not opened."""
    opened = [source for source in sources if isinstance(source, CocoDataset)]
    files = {source.annotation_file for source in opened}
    closed = {place.images for place in layout.splits.values() if place.annotations not in files}
    listed: dict[Path, list[str]] = {}
    for source in opened:
        if source.image_folder not in closed:
            listed.setdefault(source.image_folder, []).extend(map(source.file_name, range(len(source))))
    if extra := unlisted(listed):
        opened[0].faults.note_all("image files are in its folders and not in its annotations", len(extra), extra)
