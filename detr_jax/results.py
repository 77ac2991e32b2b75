"""What was found in one image, the forms in which other programs take it, and where the model looked."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class ImageDetections:
    """The objects found in one image, the surest first. Dimension: ``n`` objects."""

    boxes: np.ndarray
    """[n, 4] float32, xyxy in pixels of the original image (0, 0 is its upper left corner); not clipped to it."""
    scores: np.ndarray
    """[n] float32 in 0..1, the probability of the label."""
    labels: np.ndarray
    """[n] int, category ids of the training data."""
    names: tuple[str, ...]
    """[n], the names of the labels, or the labels as text where the checkpoint holds no names."""
    size: tuple[int, int]
    """(height, width) of the original image in pixels."""
    notes: tuple[str, ...] = ()
    """What the reader of these results should know of the image: that only the first frame of an animation was looked
    at, for example."""

    def __len__(self) -> int:
        return len(self.labels)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """The objects as result dictionaries of COCO: ``bbox`` is [x, y, width, height] in pixels."""
        x0, y0, x1, y1 = self.boxes.astype(np.float64).T
        bboxes = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1).tolist()
        return [
            {"image_id": image_id, "category_id": label, "bbox": bbox, "score": score}
            for label, bbox, score in zip(self.labels.tolist(), bboxes, self.scores.tolist(), strict=True)
        ]

    def to_supervision(self) -> Any:
        """The objects as ``supervision.Detections``, with the names as ``data["class_name"]``.

        Raises:
          ImportError: the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise ImportError("to_supervision() needs the package supervision: pip install supervision") from None
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels.astype(np.int64),
            data={"class_name": np.array(self.names, dtype=str)},
        )


@dataclass(frozen=True, eq=False)
class ImageAttention:
    """Where a model looked in one image (DETR, figures 3 and 6): weights of the last layers, the mean over the heads.

    Dimensions: ``n`` objects; ``h, w`` cells of the feature map that hold image. A map over ``h, w`` sums to 1.
    """

    image: np.ndarray
    """[H, W, 3] uint8, RGB."""
    found: ImageDetections
    """The objects, the surest first."""
    decoder: np.ndarray
    """[n, h, w] float32, from the query of each object: cross-attention."""
    encoder: np.ndarray | None
    """[h, w, h, w] float32, from each cell (first two) to all (last two): self-attention; None without an encoder."""
    cells: tuple[float, float]
    """(height, width) of the image in cells: the last row and column of cells may reach past its border."""

    def of_point(self, x: float, y: float) -> np.ndarray:
        """The encoder's attention [h, w] from the cell that holds the point (x, y), in pixels of the image.

        Raises:
          ValueError: the point lies outside of the image, or the model has no encoder.
        """
        height, width = self.found.size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"The point ({x:g}, {y:g}) lies outside of the image, {width} x {height} pixels.")
        if self.encoder is None:
            raise ValueError("The model has no encoder whose attention a point could have.")
        return self.encoder[int(y / height * self.cells[0]), int(x / width * self.cells[1])]
