"""The files of ``detr-jax predict --panoptic``: panoptic.json, and a PNG file of segment ids for each image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detr_jax.cli.output import free_name, write_text
from detr_jax.files import LARGEST_ANNOTATIONS
from detr_jax.json_files import read_object

if TYPE_CHECKING:
    from PIL import Image

    from detr_jax.image_segments import ImagePanoptic
    from detr_jax.inference import Detector

FOLDER, PICTURES = "panoptic", "panoptic_pictures"
"""Folders of the PNG files of segment ids, and of the pictures of segments."""
_AUTHOR = "Predictions of detr_jax"
"""The description in panoptic.json, by which the files of an earlier prediction are known."""


class PanopticFiles:
    """The segments of all images so far, in COCO's panoptic format.

    Files that an earlier prediction wrote are overwritten. Other files are kept: a new file gets a number if its name
    is taken.
    """

    def __init__(self, files: Sequence[Path], out: Path):
        """Choose the names of the files.

        Args:
          files: the images.
          out: folder of the results.

        Raises:
          click.ClickException: panoptic.json is not that of an earlier prediction, or an image is in a folder to which
            files would be written.
        """
        self.file = out / f"{FOLDER}.json"
        self.segments = 0
        self._out, self._files = out, files
        for folder in (out / FOLDER, out / PICTURES):
            if own := [file for file in files if folder.resolve() == file.resolve().parent]:
                raise click.ClickException(f"Files would be written to the folder of {own[0]}: give another --out.")
        earlier = _earlier(self.file)
        taken = _others(out / FOLDER, {one.get("file_name") for one in earlier.get("annotations", [])})
        self._names = [free_name(file.stem, ".png", taken) for file in files]
        taken = _others(out / PICTURES, {one.get("picture") for one in earlier.get("images", [])})
        self._pictures = [free_name(file.stem, ".png", taken) for file in files]
        self._images: dict[int, dict[str, Any]] = {}
        self._annotations: list[dict[str, Any]] = []
        self._categories: dict[int, dict[str, Any]] = {}

    def add_classes(self, detector: "Detector") -> None:
        """Add the classes of a detector to ``categories``."""
        ids, stuff = detector.category_ids, detector.stuff_labels
        for label, name in detector.class_names.items():
            self._add_class(ids.get(label, label), name, label not in stuff)

    def add(self, index: int, found: "ImagePanoptic") -> None:
        """Write the PNG file of an image.

        Args:
          index: position of the image among all images, and its id in panoptic.json.
          found: its segments.

        Raises:
          click.ClickException: the file cannot be written.
        """
        name = self._names[index]
        try:
            (self._out / FOLDER).mkdir(exist_ok=True)
            found.save_png(self._out / FOLDER / name)
        except OSError as error:
            raise click.ClickException(
                f"{self._out / FOLDER / name} cannot be written ({error.strerror or error})."
            ) from None
        height, width = found.ids.shape
        self._images[index] = {
            **{"id": index, "file_name": str(self._files[index]), "height": height, "width": width},
            **self._images.get(index, {}),
        }
        self._annotations.append(found.to_coco(index, name))
        self.segments += len(found)
        for one in found.segments:
            self._add_class(one.label, one.name, one.is_thing)

    def save_picture(self, index: int, picture: "Image.Image") -> None:
        """Write the picture of the segments of an image, before `add` is called.

        Raises:
          click.ClickException: the file cannot be written.
        """
        path = self._out / PICTURES / self._pictures[index]
        try:
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
        except (OSError, ValueError) as error:
            raise click.ClickException(f"The picture {path} cannot be written ({error}).") from None
        self._images[index] = {"picture": path.name}

    def write(self) -> None:
        """Write panoptic.json if there is a result.

        Raises:
          click.ClickException: the file cannot be written.
        """
        if self._annotations:
            form = {
                "info": {"description": _AUTHOR},
                "images": [self._images[one["image_id"]] for one in self._annotations],
                "annotations": self._annotations,
                "categories": [one for _, one in sorted(self._categories.items())],
            }
            write_text(self.file, json.dumps(form) + "\n")

    def _add_class(self, category: int, name: str, is_thing: bool) -> None:
        self._categories.setdefault(category, {"id": category, "name": name, "isthing": int(is_thing)})


def _earlier(path: Path) -> dict[str, Any]:
    """The panoptic.json of an earlier prediction; empty if there is none.

    Raises:
      click.ClickException: the file was not written by a prediction.
    """
    if not path.exists():
        return {}
    try:
        form: dict[str, Any] = read_object(path, LARGEST_ANNOTATIONS)
        entries = [*form.get("annotations", []), *form.get("images", [])]
        if form["info"]["description"] == _AUTHOR and all(isinstance(one, dict) for one in entries):
            return form
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise click.ClickException(
        f"{path} would be overwritten, and is not a file of an earlier prediction: give another --out."
    )


def _others(folder: Path, earlier: set[str | None]) -> set[str]:
    """Names in lower case of the files in a folder that an earlier prediction did not write."""
    return {file.name.lower() for file in folder.iterdir() if file.name not in earlier} if folder.is_dir() else set()
