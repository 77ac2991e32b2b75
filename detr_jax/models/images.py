"""Images as a network reads them."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from detr_jax.config import IMAGENET_MEAN, IMAGENET_STD
from detr_jax.models.feature_map import clear_padding


def normalize_images(
    images: jax.Array,
    sizes: jax.Array,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> jax.Array:
    """Normalise uint8 RGB images. `DetectorModule.normalize` takes mean and standard deviation from the model.

    Args:
      images: [B, H, W, 3] uint8, RGB.
      sizes: [B, 2] int, valid (height, width) in pixels; the padding becomes zero.
      mean: of red, green and blue in 0..1, by default ImageNet's.
      std: standard deviation of red, green and blue in 0..1, by default ImageNet's.

    Returns:
      [B, H, W, 3] float32.
    """
    subtracted, divided = (np.asarray(values, np.float32)[None, None, None] for values in (mean, std))
    return clear_padding((images.astype(jnp.float32) / 255.0 - subtracted) / divided, sizes)
