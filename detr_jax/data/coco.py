"""Data sets in COCO's layout: a folder of images and an instances JSON (Lin et al., 2014)."""

import json
from pathlib import Path
from typing import Any

from detr_jax.data.annotated import AnnotatedFolder
from detr_jax.data.instances import check_instances
from detr_jax.data.source import DataError, Faults


class CocoDataset(AnnotatedFolder):
    """Images of a folder with the boxes of an instances JSON.

    Labels are the raw category ids. Crowd annotations are left out of training and kept for the evaluation, and
    images without objects are kept. Boxes are clipped to their image; those that then have no area are dropped.
    Both are counted in ``faults``.

    Raises:
      DataError: a folder or file is missing, the JSON is damaged, or, where ``strict``, an annotation is wrong: it
        names an image or a category that is not listed, or has a field of the wrong type.
    """

    def __init__(self, image_folder: str | Path, annotation_file: str | Path, *, strict: bool = True):
        if not Path(image_folder).is_dir():
            raise DataError(
                f"The image folder {image_folder} does not exist: set data.root, data.train_images "
                "and data.val_images to where the images are."
            )
        content = read_instances_json(Path(annotation_file))
        instances = check_instances(content, Faults(str(annotation_file)))
        super().__init__(instances, Path(image_folder), strict=strict)


def read_instances_json(path: Path) -> dict[str, Any]:
    """The content of an instances JSON, of which only the three lists have been looked for.

    Raises:
      DataError: the file is missing, damaged or something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(
            f"The annotation file {path} does not exist: set data.root, data.train_annotations and "
            "data.val_annotations to where the instances JSON files are."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"The annotation file {path} cannot be read as JSON ({error}).") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"The annotation file {path} has no list {key!r}: an instances JSON holds images, annotations and "
                "categories."
            )
    return content
