"""Data sets with checked annotations: what the readers of all formats have in common."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detr_jax.data.images import decode
from detr_jax.data.instances import Instances
from detr_jax.data.source import DataError, Objects, Sample


class AnnotatedDataset:
    """A `Source` over `Instances`; a reader adds where the images are.

    Args:
      instances: the checked annotations.
      strict: whether errors of the annotations end here. Without, what they concern is left out, to be reported.

    Raises:
      DataError: the first error of the annotations.
    """

    rotate_as_displayed = False
    """Whether boxes are of the image with its EXIF rotation in any case; otherwise the annotated size tells."""

    def __init__(self, instances: Instances, *, strict: bool = True):
        self.faults = instances.faults
        if strict:
            self.faults.raise_first()
        self.categories = instances.categories
        self.image_ids: list[int] = [image["id"] for image in instances.images]
        self.sizes = np.array([(image["height"], image["width"]) for image in instances.images], np.int64).reshape(
            -1, 2
        )
        self.max_objects = max((len(objects.labels) for objects in instances.objects), default=0)
        self._images = instances.images
        self._objects = instances.objects
        self._annotations = instances.annotations

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        """The image and its objects: boxes xyxy in pixels.

        Raises:
          DataError: the image is missing, cannot be decoded, or has another size than the annotations say.
        """
        return Sample(np.asarray(self.picture(index)), self._objects[index])

    def picture(self, index: int, least: tuple[int, int] | None = None) -> Image.Image:
        """The image alone, RGB; with ``least``, perhaps at a smaller scale, as `decode` says."""
        return decode(
            self.image_bytes(index),
            self.image_name(index),
            size=tuple(self.sizes[index].tolist()),
            size_source=f"image {self.image_ids[index]} of {self.faults.where}",
            rotate=self.rotate_as_displayed,
            least=least,
        )

    def objects(self, index: int) -> Objects:
        """The objects of an image to train on."""
        return self._objects[index]

    def file_name(self, index: int) -> str:
        """The file of an image, as the annotations name it."""
        return self._images[index]["file_name"]

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
        """The fields of an instances JSON that an evaluation needs; boxes as they were given, crowds included."""
        return {
            "images": self._images,
            "annotations": self._annotations,
            "categories": [{"id": label, "name": name} for label, name in self.categories.items()],
        }

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_annotations": []}  # worker processes evaluate nothing


class AnnotatedFolder(AnnotatedDataset):
    """A data set whose images are files; ``file_name`` of each is a path, below ``image_folder`` unless absolute."""

    def __init__(self, instances: Instances, image_folder: Path = Path(), *, strict: bool = True):
        super().__init__(instances, strict=strict)
        self.image_folder = image_folder

    def image_name(self, index: int) -> str:
        """The path of the file."""
        return f"The image file {self._path(index)}"

    def image_bytes(self, index: int) -> bytes:
        """The content of the file."""
        path = self._path(index)
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise DataError(f"The image file {path} does not exist, although the annotations list it.") from None
        except (OSError, ValueError) as error:
            raise DataError(f"The image file {path} cannot be read ({error}).") from None

    def _path(self, index: int) -> Path:
        return self.image_folder / self._images[index]["file_name"]
