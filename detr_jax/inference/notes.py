"""Remarks about unusual images, which explain missing detections."""

from collections.abc import Iterator
from pathlib import Path

from detr_jax.config import DataConfig
from detr_jax.data.images import has_more_frames, is_dark
from detr_jax.inference.batching import WaitingImage

FIRST_FRAME = "has several frames or pages; only the first was used"
SHRUNK = "is larger than every bucket of the model and was shrunk to fit into one"
THIN = (
    "is so long and thin that it is shrunk to less than half of the usual height or width: cut it into parts to find "
    "more objects"
)
DARK = (
    "uses only a small part of the levels that its file can hold and is nearly black: set the highest possible level, "
    "for example --config.data.max_level=4095"
)
TINY = "is only a few pixels large and shows the model nothing"

_TINY = 8  # pixels of the longer side


def notes(waiting: WaitingImage, data: DataConfig) -> Iterator[str]:
    """Remarks about an image, each as the rest of a sentence that begins with the image's name."""
    if isinstance(waiting.image, Path) and has_more_frames(waiting.image):
        yield FIRST_FRAME
    if isinstance(waiting.image, Path) and is_dark(waiting.image, data.max_level):
        yield DARK
    if max(waiting.original_size) < _TINY:
        yield TINY
    if min(waiting.placement.size) < data.val_short_side / 2:
        yield THIN
    elif waiting.placement.shrunk:
        yield SHRUNK
