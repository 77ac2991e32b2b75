"""The check of what a backbone returns against its configuration."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from detr_jax.config import BackboneBase, ConfigError
from detr_jax.models.feature_map import FeatureMap
from detr_jax.returned import described
from detr_jax.structures import Array


@dataclass(frozen=True)
class BackboneLevels:
    """The levels that a backbone's configuration promises, from fine to coarse."""

    name: str
    """Class of the configuration, for messages."""
    channels: tuple[int, ...]
    """Channels of each level."""
    strides: tuple[int, ...]
    """Pixels of the image per cell of each level."""

    @classmethod
    def of(cls, config: BackboneBase) -> Self:
        """The levels of a configuration.

        Raises:
          ConfigError: its channels and strides do not describe the same levels.
        """
        name = type(config).__name__
        for field, value in (("channels", config.channels), ("strides", config.strides)):
            numbers = value if isinstance(value, tuple | list) else ()
            if not numbers or any(not isinstance(number, int) or number < 1 for number in numbers):
                raise ConfigError(
                    f"model.backbone ({name}) has {field}={value!r}: it must be a tuple with one whole number per "
                    "level, such as (256,)."
                )
        if len(config.channels) != len(config.strides):
            raise ConfigError(
                f"model.backbone ({name}) has channels={config.channels} and strides={config.strides}: both must have "
                "one number per level."
            )
        return cls(name, tuple(config.channels), tuple(config.strides))

    def checked(self, features: Any, images: Array) -> tuple[FeatureMap, ...]:
        """The feature maps that a backbone returned for images [B, H, W, 3], one per level.

        Raises:
          ConfigError: they are not what the configuration promises.
        """
        number = len(self.channels)
        wanted = f"it must return a tuple of {number} detr_jax.models.FeatureMap, one per level of its configuration"
        if not isinstance(features, tuple | list):
            raise ConfigError(f"model.backbone ({self.name}) returned {described(features)}: {wanted}.")
        if len(features) != number or not all(isinstance(level, FeatureMap) for level in features):
            returned = ", ".join(type(level).__name__ for level in features)
            raise ConfigError(f"model.backbone ({self.name}) returned ({returned}): {wanted}.")
        for level, (features_of_level, channels, stride) in enumerate(
            zip(features, self.channels, self.strides, strict=True)
        ):
            for fault in _faults(features_of_level, channels, stride, images):
                raise ConfigError(f"Level {level} of model.backbone ({self.name}) {fault}.")
        return tuple(features)


def _faults(features: FeatureMap, channels: int, stride: int, images: Array) -> Iterator[str]:
    """What differs from the configuration, as ends of sentences."""
    shape, batch = tuple(features.values.shape), images.shape[0]
    if len(shape) != 4:
        yield f"has values of shape {list(shape)}: they must be [B, h, w, C]"
        return
    if shape[3] != channels:
        yield f"has values of shape {list(shape)}, but its configuration has {channels} channels"
    if features.stride != stride:
        yield f"has the stride {features.stride}, but its configuration has the stride {stride}"
    for side, cells, pixels in zip(("height", "width"), shape[1:3], images.shape[1:3], strict=True):
        known = isinstance(cells, int) and isinstance(pixels, int)  # an export may leave sizes open
        if known and not pixels // stride <= cells <= -(-pixels // stride):
            yield f"has a {side} of {cells} cells for {pixels} pixels, but its configuration has the stride {stride}"
    valid_sizes = features.valid_sizes
    if valid_sizes is not None and tuple(valid_sizes.shape) != (batch, 2):
        yield f"has valid_sizes of shape {list(valid_sizes.shape)}: they must be [B, 2], here {[batch, 2]}"
