"""`AnnotatedDataset` and `AnnotatedFolder`: the base classes of the readers of all annotation formats."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from detr_jax.data.images import ExifRule, decode
from detr_jax.data.instances import Instances, MaskColumns, PackedBytes, PackedTexts, Truth
from detr_jax.data.shared_arrays import SharedArray
from detr_jax.data.source import DataError, Faults, Objects, Sample
from detr_jax.files import LARGEST_IMAGE, read_bytes

_SHARED = ("image_ids", "sizes", "starts", "boxes", "labels")


class AnnotatedDataset:
    """A `Source` over `Instances`. A subclass adds where the images are.

    Args:
      instances: the checked annotations.
      strict: raise on the first annotation error. If False, the affected annotations are dropped and recorded in
        ``faults``.
      exif: how to handle the EXIF orientation; see `detr_jax.data.images.decode`.
      max_level: the highest level of deep grey images; see `detr_jax.data.images.decode`.

    Raises:
      DataError: ``strict`` is set, and there is an annotation error.
    """

    boxes_as_displayed = False
    """Whether boxes always belong to the image with its EXIF rotation applied. If False, the annotated size decides."""

    labels_follow_names = False
    """Whether labels are positions in the list of class names. If False, they are numbers in the files."""
    origin = ""
    """A sentence, without full stop, that says how the folder of the data set was interpreted."""
    understood = ""
    """A sentence, without full stop, that says how ambiguous annotations were interpreted, and why."""

    def __init__(self, instances: Instances, *, strict: bool = True, exif: ExifRule = "auto", max_level: float = 0):
        self.faults = instances.faults
        if strict:
            self.faults.raise_first()
        self.exif = exif
        self.max_level = max_level
        self._shared: dict[str, SharedArray] = {}
        self._set(instances)

    def _set(self, instances: Instances) -> None:
        self._instances = instances
        self.categories = instances.categories
        self.category_ids = instances.category_ids
        self.image_ids = instances.image_ids
        self.sizes = instances.sizes
        self.max_objects = int(np.diff(instances.starts).max(initial=0))

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        """The image, [H, W, 3] uint8 RGB, and its objects, whose boxes are xyxy in pixels.

        Raises:
          DataError: the image is missing, cannot be decoded, or has another size than the annotations say.
        """
        return Sample(np.asarray(self.picture(index)), self.objects(index))

    def picture(self, index: int, min_size: tuple[int, int] | None = None) -> Image.Image:
        """The image without its objects, in RGB.

        If ``min_size``, a (height, width) in pixels, is given, `decode` may return the image at a smaller scale.
        """
        return decode(
            self.image_bytes(index),
            self.image_name(index),
            size=tuple(self.sizes[index].tolist()),
            size_source=f"image {self.image_ids[index]} of {self.faults.where}",
            exif="apply" if self.boxes_as_displayed and self.exif == "auto" else self.exif,
            max_level=self.max_level,
            min_size=min_size,
        )

    def objects(self, index: int) -> Objects:
        """The objects of an image to train on."""
        return self._instances.objects(index)

    def all_objects(self) -> tuple[np.ndarray, Objects]:
        """All objects of the data set, ``n`` in total: the index of each object's image [n] int64, and the objects."""
        counts = np.diff(self._instances.starts)
        return np.repeat(np.arange(len(counts)), counts), Objects(self._instances.boxes, self._instances.labels)

    def file_name(self, index: int) -> str:
        """The file name of an image, as it is written in the annotations."""
        return self._instances.file_names[index]

    def image_name(self, index: int) -> str:
        """The name of an image in messages."""
        raise NotImplementedError

    def image_bytes(self, index: int) -> bytes:
        """The encoded content of an image, in JPEG or another format.

        Raises:
          DataError: the image cannot be read.
        """
        raise NotImplementedError

    def ground_truth(self) -> dict[str, Any]:
        """The annotations, crowds included, as an instances JSON with the fields that the evaluation needs."""
        return self._instances.ground_truth()

    def relabel(self, label_of: Mapping[int, int], *, keep_ids: bool = True) -> None:
        """Changes every label to ``label_of[label]``.

        ``category_ids`` then maps the new labels to the old ones. It stays empty if ``keep_ids`` is False.
        """
        self._shared = {}
        changed = self._instances.relabelled(label_of)
        self._set(changed if keep_ids else dataclasses.replace(changed, category_ids={}))

    def select(self, kept: np.ndarray, faults: Faults | None = None) -> Self:
        """A data set with only the images of the mask ``kept`` [images] bool.

        Its faults are ``faults``, by default the faults of this data set.
        """
        chosen = object.__new__(type(self))
        chosen.__dict__.update(self.__dict__)
        chosen.faults = faults or self.faults
        chosen._shared = {}
        chosen._set(self._instances.select(kept))
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        """The state for worker processes.

        It holds the arrays as shared memory. It has no ground truth, because workers do not evaluate.
        """
        names, instances = self._instances.file_names, self._instances
        if not self._shared:
            arrays = {name: getattr(instances, name) for name in _SHARED}
            if isinstance(names, PackedTexts):
                arrays |= {"ends": names.ends, "content": names.content}
            if (masks := instances.masks) is not None:
                arrays["mask_rows"] = masks.rows
                if masks.segmentations is not None:
                    arrays |= {"mask_ends": masks.segmentations.ends, "mask_content": masks.segmentations.content}
                if masks.segment_ids is not None:
                    arrays["segment_ids"] = masks.segment_ids
            self._shared = {name: SharedArray(array) for name, array in arrays.items()}
        own = {"categories", "category_ids", "image_ids", "sizes", "_instances"}
        texts = None if isinstance(names, PackedTexts) else names
        kept = {name: value for name, value in self.__dict__.items() if name not in own}
        return kept | {"texts": texts, "names": (instances.categories, instances.category_ids)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        texts, (categories, category_ids) = state.pop("texts"), state.pop("names")
        self.__dict__.update(state)
        arrays = {name: shared.array for name, shared in self._shared.items()}
        if texts is None:
            texts = PackedTexts.of_arrays(arrays.pop("ends"), arrays.pop("content"))
        masks = None
        if (rows := arrays.pop("mask_rows", None)) is not None:
            ends, content = arrays.pop("mask_ends", None), arrays.pop("mask_content", None)
            segmentations = None if ends is None or content is None else PackedBytes.of_arrays(ends, content)
            masks = MaskColumns(rows, segmentations, arrays.pop("segment_ids", None))
        self._set(
            Instances(
                categories=categories,
                category_ids=category_ids,
                file_names=texts,
                truth=Truth.empty(),
                faults=self.faults,
                masks=masks,
                **arrays,
            )
        )


class AnnotatedFolder(AnnotatedDataset):
    """A data set whose images are files.

    Args:
      instances: the checked annotations. Each file name is a path, relative to ``image_folder`` unless it is absolute.
      image_folder: the folder of the images.
      strict: as for `AnnotatedDataset`.
      exif: as for `AnnotatedDataset`.
      max_level: as for `AnnotatedDataset`.

    Raises:
      DataError: as for `AnnotatedDataset`.
    """

    def __init__(
        self,
        instances: Instances,
        image_folder: Path = Path(),
        *,
        strict: bool = True,
        exif: ExifRule = "auto",
        max_level: float = 0,
    ):
        super().__init__(instances, strict=strict, exif=exif, max_level=max_level)
        self.image_folder = image_folder

    def image_name(self, index: int) -> str:
        """The name of an image in messages, which holds its path."""
        return f"The image file {self.path(index)}"

    def image_bytes(self, index: int) -> bytes:
        """The content of an image file.

        Raises:
          DataError: the file does not exist or cannot be read.
        """
        path = self.path(index)
        try:
            return read_bytes(path, LARGEST_IMAGE)
        except FileNotFoundError:
            raise DataError(f"The image file {path} does not exist, although the annotations list it.") from None
        except OSError as error:
            raise DataError(f"The image file {path} cannot be read ({error}).") from None

    def path(self, index: int) -> Path:
        """The path of an image file."""
        return self.image_folder / self.file_name(index)
