"""Data sets with checked annotations: what the readers of all formats have in common."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from detr_jax.data.images import ExifRule, decode
from detr_jax.data.instances import Instances, PackedTexts, Truth
from detr_jax.data.shared_arrays import SharedArray
from detr_jax.data.source import DataError, Faults, Objects, Sample

_SHARED = ("image_ids", "sizes", "starts", "boxes", "labels")


class AnnotatedDataset:
    """A `Source` over `Instances`; a reader adds where the images are.

    Args:
      instances: the checked annotations.
      strict: raise on the first error of the annotations. If False, what it concerns was dropped and is in ``faults``.
      exif, max_level: how images are decoded, see `detr_jax.data.images.decode`.

    Raises:
      DataError: the first error of the annotations.
    """

    boxes_as_displayed = False
    """Whether boxes always belong to the image with its EXIF rotation; otherwise the annotated size says so."""

    labels_follow_names = False
    """Whether labels are positions among the names in the folder, and not numbers in its files."""
    origin = ""
    """How the folder of the data set was understood; without full stop."""
    understood = ""
    """How annotations were read that could be read in several ways, and why; without full stop."""

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
        """The image and its objects: boxes xyxy in pixels.

        Raises:
          DataError: the image is missing, cannot be decoded, or has another size than the annotations say.
        """
        return Sample(np.asarray(self.picture(index)), self.objects(index))

    def picture(self, index: int, least: tuple[int, int] | None = None) -> Image.Image:
        """The image only, RGB; with ``least``, perhaps at a smaller scale, as `decode` says."""
        return decode(
            self.image_bytes(index),
            self.image_name(index),
            size=tuple(self.sizes[index].tolist()),
            size_source=f"image {self.image_ids[index]} of {self.faults.where}",
            exif="apply" if self.boxes_as_displayed and self.exif == "auto" else self.exif,
            max_level=self.max_level,
            least=least,
        )

    def objects(self, index: int) -> Objects:
        """The objects of an image to train on."""
        return self._instances.objects(index)

    def all_objects(self) -> tuple[np.ndarray, Objects]:
        """The objects of all images in one: the index of each object's image [n] int64, and the objects."""
        counts = np.diff(self._instances.starts)
        return np.repeat(np.arange(len(counts)), counts), Objects(self._instances.boxes, self._instances.labels)

    def file_name(self, index: int) -> str:
        """The file of an image, as the annotations name it."""
        return self._instances.file_names[index]

    def image_name(self, index: int) -> str:
        """How messages call an image."""
        raise NotImplementedError

    def image_bytes(self, index: int) -> bytes:
        """An image as it is stored, JPEG or another format.

        Raises:
          DataError: it cannot be read.
        """
        raise NotImplementedError

    def ground_truth(self) -> dict[str, Any]:
        """The fields of an instances JSON that an evaluation needs, crowds included."""
        return self._instances.ground_truth()

    def relabel(self, label_of: Mapping[int, int], *, keep_ids: bool = True) -> None:
        """Changes every label to ``label_of[label]``; ``category_ids`` has the labels as they were if ``keep_ids``."""
        self._shared = {}
        changed = self._instances.relabelled(label_of)
        self._set(changed if keep_ids else dataclasses.replace(changed, category_ids={}))

    def select(self, kept: np.ndarray, faults: Faults | None = None) -> Self:
        """A data set of the images ``kept`` [images] bool only, with these faults or, by default, the same."""
        chosen = object.__new__(type(self))
        chosen.__dict__.update(self.__dict__)
        chosen.faults = faults or self.faults
        chosen._shared = {}
        chosen._set(self._instances.select(kept))
        return chosen

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: the arrays are shared, and the truth stays here, as workers evaluate nothing."""
        names, instances = self._instances.file_names, self._instances
        if not self._shared:
            self._shared = {name: SharedArray(getattr(instances, name)) for name in _SHARED}
            if isinstance(names, PackedTexts):
                self._shared |= {"ends": SharedArray(names.ends), "content": SharedArray(names.content)}
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
        self._set(
            Instances(
                categories=categories,
                category_ids=category_ids,
                file_names=texts,
                truth=Truth.empty(),
                faults=self.faults,
                **arrays,
            )
        )


class AnnotatedFolder(AnnotatedDataset):
    """A data set whose images are files; ``file_name`` of each is a path, below ``image_folder`` unless absolute."""

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
        """The path of the file."""
        return f"The image file {self.path(index)}"

    def image_bytes(self, index: int) -> bytes:
        """The content of the file."""
        path = self.path(index)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"The image file {path} does not exist, although the annotations list it.") from None
        except (OSError, ValueError) as error:
            raise DataError(f"The image file {path} cannot be read ({error}).") from None

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.image_folder / self.file_name(index)
