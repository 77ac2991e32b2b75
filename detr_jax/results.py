"""What was found in one image, and the forms in which other programs take it."""

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
    """[n] int32, category ids as in training."""
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
