"""The configuration of augmentation: how training images are changed at random, sizes first and pixels later.

Every random number comes from the plan of an epoch, which is a function of seed and epoch. So the images are the same
when a run is resumed, and for any number of threads or worker processes.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detr_jax.config.fields import ranged

if TYPE_CHECKING:
    import numpy as np

    from detr_jax.config.data import DataConfig
    from detr_jax.data.transforms import Geometries


@dataclass(kw_only=True)
class Augmentation:
    """The base class of augmentations. Dimensions: ``n`` images, ``k`` bounds of an image.

    The first half, `geometries` and `bounds`, says how images are flipped, cropped and resized. It reads sizes only, so
    that batches can be planned before a pixel is read. The second half, `pixels`, changes the pixels of an image that
    has its final size.
    """

    @property
    @abstractmethod
    def draws(self) -> int:
        """Random numbers that the geometry of an image takes."""
        raise NotImplementedError(f"{type(self).__name__} must define draws.")

    @property
    def pixel_draws(self) -> int:
        """Random numbers that `pixels` takes for an image. They are drawn apart from the others."""
        return 0

    @abstractmethod
    def geometries(self, sizes: "np.ndarray", draws: "np.ndarray", data: "DataConfig") -> "Geometries":
        """Compute the geometry of each image.

        Args:
          sizes: [n, 2] int, (height, width) of the images in pixels.
          draws: [n, ``self.draws``] float, random numbers in [0, 1).
          data: the image sizes and `flip`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define geometries(self, sizes, draws, data).")

    @abstractmethod
    def bounds(self, sizes: "np.ndarray", data: "DataConfig") -> "np.ndarray":
        """Compute sizes that bound all geometries of each image: what holds all of them holds every result.

        Args:
          sizes: [n, 2] int, (height, width) of the images in pixels.
          data: as for `geometries`.

        Returns:
          [n, k, 2] int, (height, width) in pixels.
        """
        raise NotImplementedError(f"{type(self).__name__} must define bounds(self, sizes, data).")

    def pixels(self, image: "np.ndarray", draws: Sequence[float]) -> "np.ndarray":
        """Change the pixels of an image, after its geometry.

        Args:
          image: [H, W, 3] uint8, RGB. It is read-only.
          draws: ``self.pixel_draws`` random numbers in [0, 1).

        Returns:
          [H, W, 3] uint8, of the same size.
        """
        return image


@dataclass(kw_only=True)
class Photometric:
    """The base class of changes of an image's colours, for `DetrAugmentation`."""

    @property
    @abstractmethod
    def num_draws(self) -> int:
        """Random numbers that an image takes."""
        raise NotImplementedError(f"{type(self).__name__} must define num_draws.")

    @abstractmethod
    def __call__(self, image: "np.ndarray", draws: Sequence[float]) -> "np.ndarray":
        """Change an image; arguments and result are those of `Augmentation.pixels`."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(self, image, draws).")


@dataclass(kw_only=True)
class DetrAugmentation(Augmentation):
    """The augmentation of the paper: flip, then resize, or resize, crop and resize (DETR, section 4 and appendix A.4).

    The sizes and `flip` are fields of ``data``.
    """

    photometric: Photometric | None = None
    """Change of the colours. None, the default: none, as in the paper."""

    @property
    def draws(self) -> int:
        """Random numbers of a geometry."""
        from detr_jax.data.transforms import DRAWS

        return DRAWS

    @property
    def pixel_draws(self) -> int:
        """Random numbers of the photometric change."""
        return 0 if self.photometric is None else self.photometric.num_draws

    def geometries(self, sizes: "np.ndarray", draws: "np.ndarray", data: "DataConfig") -> "Geometries":
        """The paper's geometries: `detr_jax.data.transforms.train_geometries`."""
        from detr_jax.data.transforms import train_geometries

        return train_geometries(sizes, draws, data)

    def bounds(self, sizes: "np.ndarray", data: "DataConfig") -> "np.ndarray":
        """Their bounds: `detr_jax.data.transforms.largest_sizes`."""
        from detr_jax.data.transforms import largest_sizes

        return largest_sizes(sizes, data)

    def pixels(self, image: "np.ndarray", draws: Sequence[float]) -> "np.ndarray":
        """The photometric change, if there is one."""
        return image if self.photometric is None else self.photometric(image, draws)


@dataclass(kw_only=True)
class ColorJitter(Photometric):
    """Random brightness, contrast, saturation and hue, in this order (torchvision's ColorJitter, with a fixed order).

    A factor is drawn evenly from ``[max(0, 1 - value), 1 + value]``. Every field is 0 by default: no change.
    """

    brightness: float = 0.0
    """Range of the factor of all pixel values. 0.4 is usual."""
    contrast: float = 0.0
    """Range of the factor of the difference from the mean grey level of the image. 0.4 is usual."""
    saturation: float = 0.0
    """Range of the factor of the difference from the pixel's own grey level. 0.4 is usual."""
    hue: float = ranged(0.0, most=0.5)
    """Largest shift of the hue in turns of the colour circle, from 0 to 0.5. 0.1 is usual."""

    @property
    def num_draws(self) -> int:
        """One random number for each field."""
        return 4

    def __call__(self, image: "np.ndarray", draws: Sequence[float]) -> "np.ndarray":
        """Change an image [H, W, 3] uint8."""
        from detr_jax.data.photometric import jitter

        return jitter(image, list(self._factors(draws)), self.hue * (2 * draws[3] - 1))

    def _factors(self, draws: Sequence[float]) -> Iterator[float]:
        """The factors of brightness, contrast and saturation."""
        for value, draw in zip((self.brightness, self.contrast, self.saturation), draws, strict=False):
            least = max(0.0, 1 - value)
            yield least + draw * (1 + value - least)
