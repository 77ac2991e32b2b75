"""What a data set is to the rest: samples by index, sizes without reading a pixel, annotations to be judged by."""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np


class DataError(ValueError):
    """Data that cannot be used; the message names the file, field or id and what would be right."""


class Faults:
    """Faults of the data that do not end a run, counted by kind, with the first ones by name."""

    NAMED = 3

    def __init__(self, where: str):
        self.where = where
        self.counts: collections.Counter[str] = collections.Counter()
        self.first: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, kind: str, name: str) -> None:
        """Counts a fault of this kind, and keeps its name if it is among the first."""
        self.counts[kind] += 1
        if len(self.first[kind]) < self.NAMED:
            self.first[kind].append(name)

    def sentences(self) -> list[str]:
        """One sentence a kind."""
        return [
            f"{self.where}: {count} {kind} ({'; '.join(self.first[kind])}{'; ...' if count > self.NAMED else ''})."
            for kind, count in self.counts.items()
        ]


class Objects(NamedTuple):
    """The objects of an image that a model trains on. Dimension: ``n`` objects."""

    boxes: np.ndarray
    """[n, 4] float32, xyxy in pixels of the image, within it and with area."""
    labels: np.ndarray
    """[n] int32."""


class Sample(NamedTuple):
    """An image with its objects. Dimensions: ``H, W`` pixels."""

    image: np.ndarray
    """[H, W, 3] uint8, RGB."""
    objects: Objects


class Source(Protocol):
    """A random-access data set."""

    @property
    def categories(self) -> dict[int, str]:
        """Names of the labels that occur."""

    @property
    def image_ids(self) -> Sequence[int]:
        """The id of each image, by index."""

    @property
    def sizes(self) -> np.ndarray:
        """[images, 2] int, (height, width) in pixels, known without reading the images."""

    @property
    def max_objects(self) -> int:
        """The most objects that an image has."""

    @property
    def faults(self) -> Faults:
        """What was found wrong with the data and mended."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """An image and the objects to train on; crowds are not among them."""

    def ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO's JSON form, crowds included, for the evaluation."""
