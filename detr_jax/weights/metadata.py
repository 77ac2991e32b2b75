"""`Metadata`: what the files of a checkpoint say next to its tensors and what changes the model's predictions.

The `Layout.read_metadata` of each framework fills a `Metadata` from its files. What this package does not model
becomes one of its faults.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from detr_jax.config import IMAGENET_MEAN, IMAGENET_STD, DataConfig, Rounding

Channels = tuple[float, float, float]
"""One number per colour channel."""

_PLACEHOLDER = re.compile(r"(?i)label_\d+|n/a|\s*")
_PLAIN_RESNET = re.compile(r"(?:[\w.-]+/)?(?:(?:tv|ssl|swsl|gluon)_)*resnet-?\d+(?:_?v1b?)?(?:\..*)?")


@dataclass
class Metadata:
    """What is known of a model in addition to its tensors. The defaults are those of the original DETR."""

    num_heads: int | None = None
    """Attention heads. None: unknown."""
    num_points: int | None = None
    """Points that a head of deformable attention samples in each level. None: as many as the tensors show."""
    num_queries: int | None = None
    """Object queries of a detector that does not learn them. None: unknown."""
    dilation: bool = False
    """The files show a DC5 model."""
    encoder_layers: int | None = None
    """None: as many as the tensors show."""
    decoder_layers: int | None = None
    """None: as many as the tensors show."""
    class_names: dict[int, str] = field(default_factory=dict)
    """Class name by label, without placeholders."""
    short_side: int = 800
    """Short side of resized images in pixels. 0: images are not resized."""
    max_long_side: int = 1333
    """Largest long side of resized images in pixels."""
    rounding: str = "original"
    """A value of ``data.resize_rounding``."""
    bucket: tuple[int, int] | None = None
    """(height, width) in pixels to which every image is padded. None: images are not padded to a fixed size."""
    pixel_mean: Channels = IMAGENET_MEAN
    """Mean by which images are normalised, in 0..1, in the order of the model's channels (see `bgr`)."""
    pixel_std: Channels = IMAGENET_STD
    """Standard deviation, likewise."""
    bgr: bool = False
    """The model's channels are blue, green, red."""
    faults: list[str] = field(default_factory=list)
    """Sentences about what cannot be imported."""
    notes: list[str] = field(default_factory=list)
    """Sentences about what was assumed, changed or ignored."""

    @property
    def rgb_mean(self) -> Channels:
        """`pixel_mean` of red, green, blue."""
        return self.pixel_mean[::-1] if self.bgr else self.pixel_mean

    @property
    def rgb_std(self) -> Channels:
        """`pixel_std` of red, green, blue."""
        return self.pixel_std[::-1] if self.bgr else self.pixel_std

    def set_normalisation(self, mean: Any, std: Any, *, levels: float, where: str) -> None:
        """Sets mean and standard deviation.

        Args:
          mean: of values in 0..``levels``, three numbers or one number for all channels.
          std: the standard deviation, likewise.
          levels: the largest value of a pixel.
          where: subject of the fault if the numbers are unusable.
        """
        try:
            means, stds = _three(mean), _three(std)
        except (TypeError, ValueError):
            means = stds = (math.nan,) * 3
        if not all(map(math.isfinite, (*means, *stds))) or min(stds) <= 0:
            self.faults.append(
                f"{where} normalises by mean {mean!r} and deviation {std!r}: each must be three numbers, "
                "the deviations above 0."
            )
            return
        self.pixel_mean, self.pixel_std = _scaled(means, levels), _scaled(stds, levels)

    def checked_count(self, value: Any, where: str) -> int | None:
        """A number of heads or layers. None if the files do not give it or if it is a fault."""
        if value is not None and not is_whole(value):
            self.faults.append(f"{where}={value!r}: it must be a whole number of at least 1.")
            return None
        return value

    def set_class_names(self, names: Mapping[int, Any], where: str) -> None:
        """Sets class names by label and drops placeholders such as LABEL_0 and N/A."""
        self.class_names = {label: str(name) for label, name in names.items() if not is_placeholder(name)}
        if names and not self.class_names:
            first = next(iter(names.values()))
            self.notes.append(f"{where} holds only placeholders such as {first!r}: classes have numbers, not names.")

    def check_backbone(self, name: Any, where: str) -> None:
        """Refuses residual networks that compute something else with the same tensors."""
        if isinstance(name, str) and not _PLAIN_RESNET.fullmatch(name):
            self.faults.append(
                f"{where}={name!r} is not a plain ResNet such as 'resnet50', and only plain ResNets are modelled."
            )

    def note_thresholds(self, values: Mapping[str, Any], where: str) -> None:
        """Notes a score threshold that the files recommend."""
        for name in ("threshold", "score_threshold", "score_thr"):
            value = values.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                self.notes.append(f"{where} has {name}={value}: give it to predict as --threshold {value}.")

    def data(self) -> DataConfig:
        """The image sizes of the model's training. Training sides keep the original's ratio to the validation side."""
        paper = DataConfig()
        if not self.short_side:
            sides: dict[str, Any] = {"train_short_sides": (), "crop_short_sides": ()}
        else:
            scale = self.short_side / paper.val_short_side
            sides = {
                name: _resized_sides(getattr(paper, name), scale)
                for name in ("train_short_sides", "crop_short_sides", "crop_min", "crop_max")
            }
        return DataConfig(
            val_short_side=self.short_side,
            max_long_side=self.max_long_side,
            resize_rounding=Rounding(self.rounding),
            **sides,
        )


def is_placeholder(name: Any) -> bool:
    """Whether a class name is not a real name: LABEL_0, N/A, or blank."""
    return name is None or bool(_PLACEHOLDER.fullmatch(str(name)))


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether a value from a file is an integer of at least ``least``, and small enough for a number of pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31


def nested(values: Any, *names: str) -> Any:
    """The value under these names in nested dictionaries, None if one of them is missing."""
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def nested_dict(values: Any, *names: str) -> dict[str, Any]:
    """The dictionary under these names in nested dictionaries, empty if one of them is missing."""
    found = nested(values, *names)
    return found if isinstance(found, dict) else {}


def _three(value: Any) -> tuple[float, ...]:
    values = [value] * 3 if isinstance(value, int | float) else list(value)
    if len(values) != 3 or any(isinstance(x, str | bool) for x in values):
        raise ValueError
    return tuple(float(x) for x in values)


def _scaled(values: Iterable[float], levels: float) -> Channels:
    """Values in 0..``levels``, scaled to 0..1. ImageNet's values become exact, however they were rounded."""
    scaled = tuple(float(f"{value / levels:.9g}") for value in values)
    for known in (IMAGENET_MEAN, IMAGENET_MEAN[::-1], IMAGENET_STD, IMAGENET_STD[::-1]):
        if all(abs(a - b) < 2e-6 for a, b in zip(scaled, known, strict=True)):
            return known
    return scaled[0], scaled[1], scaled[2]


def _resized_sides(sides: Any, scale: float) -> Any:
    if isinstance(sides, tuple):
        return tuple(dict.fromkeys(_resized_sides(side, scale) for side in sides))
    return max(1, round(sides * scale))
