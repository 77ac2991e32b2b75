"""`ImagePanoptic`: the panoptic segments of one image, and their conversion to COCO's files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detr_jax.data.images import ImageLike
from detr_jax.data.panoptic_png import write_png
from detr_jax.visualization.masks import draw_segments
from detr_jax.wording import counted


@dataclass(frozen=True)
class Segment:
    """A segment of an image."""

    id: int
    """The value of its pixels in `ImagePanoptic.ids`, from 1 on."""
    label: int
    """Category id of the training data."""
    name: str
    """Name of the class."""
    is_thing: bool
    """Whether it is a single object. If not, it is all that the image shows of its class, such as sky."""
    score: float
    """Probability of the label, in 0..1."""
    area: int
    """In pixels."""


@dataclass(frozen=True, eq=False, repr=False)
class ImagePanoptic:
    """The panoptic segments of one image: every pixel belongs to one segment or to none."""

    ids: np.ndarray
    """[H, W] int32 in the size of the image: the `Segment.id` of each pixel; 0 for none."""
    segments: tuple[Segment, ...]
    """In the order of their ids."""

    def __len__(self) -> int:
        return len(self.segments)

    def __repr__(self) -> str:
        height, width = self.ids.shape
        return f"ImagePanoptic({counted(len(self), 'segment')} in {width} x {height} pixels)"

    def mask(self, segment: Segment) -> np.ndarray:
        """The pixels [H, W] bool of a segment."""
        found: np.ndarray = self.ids == segment.id
        return found

    def draw(self, image: ImageLike) -> Image.Image:
        """The image with its segments in the colours of their classes, and their names.

        Args:
          image: the predicted image as a path, a PIL image or an array.

        Raises:
          DataError: the image cannot be read.
          ValueError: it has another size than the predicted one.
        """
        from detr_jax.results import opened_like  # results.py imports this file

        pixels = opened_like(image, self.ids.shape)
        return draw_segments(pixels, self.ids, {one.id: (one.label, one.name) for one in self.segments})

    def save_png(self, path: str | Path) -> None:
        """Writes the ids as a PNG file in COCO's panoptic format: R + 256 G + 65536 B is the id."""
        write_png(Path(path), self.ids)

    def to_coco(self, image_id: int, file_name: str) -> dict[str, Any]:
        """The segments as an entry of ``annotations`` in COCO's panoptic JSON.

        Args:
          image_id: id of the image.
          file_name: name of the PNG file that `save_png` wrote.
        """
        segments = []
        for one in self.segments:
            rows, columns = (np.flatnonzero(self.mask(one).any(axis=axis)) for axis in (1, 0))
            left, top = int(columns[0]), int(rows[0])
            box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
            segments.append({"id": one.id, "category_id": one.label, "area": one.area, "bbox": box, "iscrowd": 0})
        return {"image_id": image_id, "file_name": file_name, "segments_info": segments}
