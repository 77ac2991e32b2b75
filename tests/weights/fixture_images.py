"""The fixtures' images, normalised and padded with only numpy."""

import numpy as np

SIZES = ((75, 120), (96, 83))
"""(height, width) of the two images in pixels. Only one side is a multiple of 32."""
BUCKET = (96, 128)


def normalized(image: np.ndarray) -> np.ndarray:
    """A uint8 image [h, w, 3] with ImageNet's normalisation, float32."""
    return ((image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)


def padded(images: list[np.ndarray], bucket: tuple[int, int]) -> np.ndarray:
    """uint8 images, normalised and padded with zeros at the bottom and right to a bucket: [B, H, W, 3]."""
    batch = np.zeros((len(images), *bucket, 3), np.float32)
    for place, image in zip(batch, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = normalized(image)
    return batch
