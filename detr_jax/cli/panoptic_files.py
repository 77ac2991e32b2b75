"""The files of ``detr-jax predict --panoptic``: panoptic.json, and a PNG file of segment ids for each image."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detr_jax.cli.output import write_text

if TYPE_CHECKING:
    from PIL import Image

    from detr_jax.image_segments import ImagePanoptic
    from detr_jax.inference import Detector

FOLDER, PICTURES = "panoptic", "panoptic_pictures"
"""Folders of the PNG files of segment ids, and of the pictures of segments."""


class PanopticFiles:
    """The segments of all images so far, in COCO's panoptic format."""

    def __init__(self, out: Path, detector: "Detector"):
        """``out`` is the folder of the results. The detector knows the names of the classes."""
        self._out = out
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._taken: set[str] = set()
        ids, stuff = detector.category_ids, detector.stuff_labels
        self._categories = [
            {"id": ids.get(label, label), "name": name, "isthing": int(label not in stuff)}
            for label, name in sorted(detector.class_names.items())
        ]

    def add(self, index: int, file: Path, found: "ImagePanoptic") -> None:
        """Write the PNG file of an image.

        Args:
          index: position of the image among all images, and its id in panoptic.json.
          file: the image.
          found: its segments.

        Raises:
          click.ClickException: the file cannot be written.
        """
        name, number = f"{file.stem}.png", 1
        while name.lower() in self._taken:
            number += 1
            name = f"{file.stem}-{number}.png"
        self._taken.add(name.lower())
        height, width = found.ids.shape
        try:
            (self._out / FOLDER).mkdir(exist_ok=True)
            found.save_png(self._out / FOLDER / name)
        except OSError as error:
            raise click.ClickException(
                f"{self._out / FOLDER / name} cannot be written ({error.strerror or error})."
            ) from None
        self._images.append({"id": index, "file_name": str(file), "height": height, "width": width})
        self._annotations.append(found.to_coco(index, name))

    def save_picture(self, picture: "Image.Image", name: str) -> None:
        """Write the picture of the segments of an image.

        Raises:
          click.ClickException: the file cannot be written.
        """
        path = self._out / PICTURES / name
        try:
            path.parent.mkdir(exist_ok=True)
            picture.save(path, quality=92)  # for JPEG; PNG ignores it
        except (OSError, ValueError) as error:
            raise click.ClickException(f"The picture {path} cannot be written ({error}).") from None

    def write(self) -> None:
        """Write panoptic.json if there is a result.

        Raises:
          click.ClickException: the file cannot be written.
        """
        if self._images:
            form = {"images": self._images, "annotations": self._annotations, "categories": self._categories}
            write_text(self._out / f"{FOLDER}.json", json.dumps(form) + "\n")
