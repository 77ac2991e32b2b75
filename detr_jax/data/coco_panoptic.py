"""`CocoPanopticDataset`: a folder of images, a panoptic JSON and a folder of PNG files (Kirillov et al., 2019)."""

import contextlib
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from detr_jax.data.annotated import AnnotatedFolder
from detr_jax.data.annotation_checks import check_rows
from detr_jax.data.annotation_rows import Rows
from detr_jax.data.boundaries import check_names
from detr_jax.data.coco import read_file
from detr_jax.data.coco_layouts import image_folder
from detr_jax.data.images import ExifRule
from detr_jax.data.instances import Instances, MaskColumns
from detr_jax.data.layouts import WHOLE, Layout, in_order, meaning
from detr_jax.data.masks import Masks, encoded
from detr_jax.data.panoptic_png import Panoptic, SegmentIds, check_ids, read_png
from detr_jax.data.source import DataError, Faults, Objects
from detr_jax.files import open_regular

_PREFIX = "panoptic_"


class PanopticSplit(NamedTuple):
    """The location of a split."""

    images: Path
    """The folder of the images."""
    annotations: Path
    """The panoptic JSON."""
    segments: Path
    """The folder of the PNG files."""


class CocoPanopticDataset(AnnotatedFolder):
    """The images of a folder with the segments of a panoptic JSON: things and stuff.

    Labels are the raw category ids. As in the original, crowds are trained on, and the boxes for training go from the
    first to the last pixel of a segment, so they are a pixel smaller than the boxes in the JSON. The evaluation of
    boxes and masks reads the things. The evaluation of panoptic quality reads all segments.

    Args:
      image_folder: the folder of the images.
      annotation_file: the panoptic JSON.
      segment_folder: the folder of the PNG files.
      strict: raise on the first annotation error. If False, the annotation is dropped and recorded in ``faults``.
      exif: see `detr_jax.data.images.decode`.
      max_level: see `detr_jax.data.images.decode`.
      masks: give the objects masks, which are read from the PNG files.

    Raises:
      DataError: a folder or file is missing, the JSON is damaged, or, if ``strict``, an annotation is wrong.
    """

    def __init__(
        self,
        image_folder: str | Path,
        annotation_file: str | Path,
        segment_folder: str | Path,
        *,
        strict: bool = True,
        exif: ExifRule = "auto",
        max_level: float = 0,
        masks: bool = False,
    ):
        for folder, what in ((image_folder, "image folder"), (segment_folder, "folder of panoptic PNG files")):
            if not Path(folder).is_dir():
                raise DataError(f"The {what} {folder} does not exist: set data.root to the folder of the data set.")
        self.annotation_file = Path(annotation_file)
        self.segment_folder = Path(segment_folder)
        self.reads_masks = masks
        faults = Faults(str(annotation_file))
        form = _read(self.annotation_file)
        check_names((one.file_name for one in form.images), Path(image_folder), self.annotation_file)
        self._things = frozenset(one.id for one in form.categories if one.isthing)
        self._png_of = {one.image_id: one.file_name for one in form.annotations}
        there = set(os.listdir(segment_folder))
        for one in form.annotations:
            if one.file_name not in there:
                faults.error(
                    "panoptic files that are missing",
                    f"the panoptic file {self.segment_folder / one.file_name} does not exist, although image "
                    f"{one.image_id} needs it",
                )
        instances = check_rows(_rows(form, faults), faults, official=True, crowds_are_objects=True)
        instances.boxes[:, 2:] -= 1  # from the first to the last pixel, as the original computes them from masks
        np.maximum(instances.boxes[:, 2:], instances.boxes[:, :2], out=instances.boxes[:, 2:])
        super().__init__(instances, Path(image_folder), strict=strict, exif=exif, max_level=max_level)

    def _set(self, instances: Instances) -> None:
        super()._set(instances)
        id_of = instances.category_ids
        self.stuff_labels = frozenset(x for x in instances.categories if id_of.get(x, x) not in self._things)

    @property
    def _columns(self) -> MaskColumns:
        assert self._instances.masks is not None
        return self._instances.masks

    @property
    def _segment_ids(self) -> np.ndarray:
        """The id of every annotation's pixels."""
        assert self._columns.segment_ids is not None
        return self._columns.segment_ids

    def objects(self, index: int) -> Objects:
        """The segments of an image, things and stuff."""
        found = super().objects(index)
        if not self.reads_masks:
            return found
        columns, starts = self._columns, self._instances.starts
        ids = self._segment_ids[columns.rows[starts[index] : starts[index + 1]]]
        height, width = self.sizes[index].tolist()
        read = functools.partial(self._ids, index)
        masks = Masks.of(SegmentIds(read, (height, width), ids, self._png_name(index)))
        return Objects(found.boxes, found.labels, masks)

    def panoptic(self, index: int) -> Panoptic:
        """All segments of an image.

        Raises:
          DataError: the PNG file cannot be read, or has other ids than the JSON.
        """
        truth = self._instances.truth
        rows = truth.image == index
        ids, labels, areas = self._segment_ids[rows], truth.labels[rows], truth.areas[rows].astype(np.int64)
        found = Panoptic(self._ids(index), ids, labels, areas, truth.crowds[rows])
        if not self.faults.errors:  # segments that were dropped have pixels
            check_ids(found, self._png_name(index))
        return found

    def ground_truth(self) -> dict[str, Any]:
        """The things, crowds included, as an instances JSON. Masks are added if they are read."""
        form = self._instances.ground_truth()
        form["categories"] = [one for one in form["categories"] if one["id"] not in self.stuff_labels]
        kept = [i for i, one in enumerate(form["annotations"]) if one["category_id"] not in self.stuff_labels]
        if self.reads_masks:
            self._add_masks(form["annotations"], kept)
        form["annotations"] = [form["annotations"][i] for i in kept]
        return form

    def _add_masks(self, annotations: list[dict[str, Any]], kept: list[int]) -> None:
        image_of = self._instances.truth.image
        read: tuple[int, np.ndarray | None] = -1, None
        for i in sorted(kept, key=lambda i: int(image_of[i])):
            index = int(image_of[i])
            if read[0] != index:
                read = index, self._ids(index)
            annotations[i]["segmentation"] = encoded(read[1] == self._segment_ids[i])

    def check_masks(self, index: int) -> None:
        """Checks the PNG file of an image, its areas and its boxes.

        Raises:
          DataError: the PNG file cannot be read, or its segments are not those of the JSON.
        """
        found = self.panoptic(index)
        boxes = self._instances.truth.boxes[self._instances.truth.image == index]
        for segment, (x, y, width, height) in zip(found.segment_ids.tolist(), boxes.tolist(), strict=True):
            mask = found.ids == segment
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            if not len(rows):
                continue
            there = [int(x) for x in (columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1)]
            if there != [x, y, width, height]:
                raise DataError(
                    f"{self._png_name(index)} shows the segment {segment} at {there} (xywh in pixels), and its JSON "
                    f"has the bbox {[x, y, width, height]}."
                )

    def _png_name(self, index: int) -> str:
        return f"The panoptic file {self._png(index)}"

    def _png(self, index: int) -> Path:
        return self.segment_folder / self._png_of[int(self.image_ids[index])]

    def _ids(self, index: int) -> np.ndarray:
        return read_png(self._png(index), tuple(self.sizes[index].tolist()))


class _Category(msgspec.Struct):
    id: int
    name: str
    isthing: int | bool


class _Image(msgspec.Struct):
    id: int
    file_name: str
    height: int
    width: int


class _Segment(msgspec.Struct):
    id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float
    iscrowd: int = 0


class _Annotation(msgspec.Struct):
    image_id: int
    file_name: str
    segments_info: list[_Segment]


class _Form(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def _read(path: Path) -> _Form:
    """The content of a panoptic JSON.

    Raises:
      DataError: the file is missing, or is not a panoptic JSON.
    """
    try:
        return msgspec.json.decode(read_file(path), type=_Form)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"The annotation file {path} is not a panoptic JSON ({error}): it must hold images, categories with "
            "isthing, and annotations with image_id, file_name and segments_info."
        ) from None


def _rows(form: _Form, faults: Faults) -> Rows:
    """The segments as annotations. Images without an annotation are errors, and so are ids that occur twice."""
    listed = {one.image_id for one in form.annotations}
    for image in form.images:
        if image.id not in listed:
            faults.error("images without segments", f"image {image.id} has no entry under annotations")
    seen: set[int] = set()
    for one in form.annotations:
        if one.image_id in seen:
            faults.error("images with two entries", f"image {one.image_id} has two entries under annotations")
        seen.add(one.image_id)
    pairs, files = [], []
    for one in form.annotations:
        ids_of_image: set[int] = set()
        for segment in one.segments_info:
            if segment.id in ids_of_image:
                faults.error("segments with the same id", f"image {one.image_id} has two segments {segment.id}")
            elif not 0 < segment.id < 2**24:
                faults.error(
                    "segments whose id is out of range",
                    f"image {one.image_id} has a segment {segment.id}, and ids must be from 1 to {2**24 - 1}",
                )
            else:
                pairs.append((one.image_id, segment))
                files.append(one.file_name)
            ids_of_image.add(segment.id)
    images = [image for image in form.images if image.id in listed]
    segments = [segment for _, segment in pairs]
    owners = np.array([owner for owner, _ in pairs], np.int64)

    def column(name: str, kind: type) -> np.ndarray:
        return np.array([getattr(segment, name) for segment in segments], kind)

    ids = column("id", np.int64)
    return Rows(
        [(one.id, one.name) for one in form.categories],
        np.array([one.id for one in images], np.int64),
        [one.file_name for one in images],
        np.array([(one.height, one.width) for one in images], np.int64).reshape(-1, 2),
        np.arange(len(pairs)),
        owners,
        column("category_id", np.int64),
        column("bbox", np.float64).reshape(-1, 4),
        column("area", np.float64),
        (column("iscrowd", np.int64) != 0).astype(np.int64),
        lambda row: f"segment {ids[row]} in {files[row]}",
        segment_ids=ids,
    )


def recognise_panoptic(root: Path) -> Layout | None:
    """The layout of a folder with panoptic JSON files and their PNG files, or None if it has none.

    Raises:
      DataError: the folder of the images or of the PNG files is not found.
    """
    if not root.is_dir():
        return None
    files = sorted(file for folder in (root / "annotations", root) for file in folder.glob(f"{_PREFIX}*.json"))
    splits: dict[str, PanopticSplit] = {}
    for file in files:
        stem = file.stem.removeprefix(_PREFIX)
        name = stem if meaning(stem) or len(files) > 1 else WHOLE
        folder = next((one for one in (file.with_suffix(""), file.parent / stem) if one.is_dir()), None)
        if folder is None and _is_list(file):
            continue  # panopticapi's list of categories
        if folder is None:
            raise DataError(f"{file} needs the folder {file.with_suffix('')} with its PNG files.")
        splits[name] = PanopticSplit(_image_folder(file, root, stem), file, folder)
    if not splits:
        return None
    shown = ", ".join(f"{name} is {splits[name].annotations.relative_to(root)}" for name in in_order(splits))
    return Layout("coco_panoptic", splits, f"{root} is read as COCO's panoptic data ({shown})")


def _is_list(file: Path) -> bool:
    """Whether a JSON file holds a list. A panoptic JSON is an object."""
    with contextlib.suppress(OSError), open_regular(file) as opened:
        return opened.read(1024).lstrip().startswith(b"[")
    return False


def _image_folder(file: Path, root: Path, stem: str) -> Path:
    """The folder of the images: of the split's name, as in COCO, or where the first images are."""
    return root / stem if (root / stem).is_dir() else image_folder(file, root)
