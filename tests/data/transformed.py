"""A geometry applied to an image and its objects."""

import numpy as np
from PIL import Image

from detr_jax.data.source import Objects
from detr_jax.data.transforms import Geometry, transform_objects, transform_picture


def apply(geometry: Geometry, image: np.ndarray, objects: Objects) -> tuple[np.ndarray, Objects]:
    """The new image [h, w, 3] uint8, and its objects in its own pixels."""
    size = image.shape[0], image.shape[1]
    picture = transform_picture(geometry, Image.fromarray(image), size)
    return np.asarray(picture), transform_objects(geometry, objects, size)
