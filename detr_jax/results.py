"""The detections and the attention of one image, and their conversion to the formats of other programs."""

import base64
import html
import io
import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detr_jax.boxes import xyxy_to_xywh
from detr_jax.data.images import ImageLike, decode, open_image
from detr_jax.data.run_lengths import decoded
from detr_jax.image_segments import ImagePanoptic
from detr_jax.visualization.attention import MOST_OBJECTS, attention_sheet
from detr_jax.visualization.boxes import LabelledBoxes, draw_boxes
from detr_jax.visualization.sampling import sampling_sheet
from detr_jax.wording import counted, one_line

_LEAST_SIDE = 320  # pixels of the longer side of a picture; smaller images are enlarged, or captions would hide them
_TABLE_ROWS = 20  # objects in the table of a notebook
_LINE = 100  # characters of a repr


@dataclass(frozen=True, eq=False, repr=False)
class ImageDetections:
    """The objects detected in one image, highest score first. Dimension: ``n`` objects.

    A notebook shows them as a table. `draw` returns a picture.
    """

    boxes: np.ndarray
    """[n, 4] float32, xyxy in pixels of the original image (0, 0 is its upper left corner); not clipped to it."""
    scores: np.ndarray
    """[n] float32 in 0..1, the probability of the label."""
    labels: np.ndarray
    """[n] int, category ids of the training data."""
    names: tuple[str, ...]
    """[n], the names of the labels, or the labels as text if the checkpoint holds no names."""
    size: tuple[int, int]
    """(height, width) of the original image in pixels."""
    notes: tuple[str, ...] = ()
    """Remarks about the image, for example that only the first frame of an animation was used."""
    run_lengths: tuple[dict[str, Any], ...] | None = None
    """[n] the mask of each object in COCO's compressed run lengths: ``size`` and ``counts``, a text. None: masks were
    not asked for. `masks` decodes them."""
    panoptic: ImagePanoptic | None = None
    """The panoptic segments of the image. None: they were not asked for."""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        height, width = self.size
        beginning = f"ImageDetections({counted(len(self), 'object')} in {width} x {height} pixels"
        notes = f"; {counted(len(self.notes), 'note')}" if self.notes else ""
        if not len(self):
            return f"{beginning}{notes})"
        each = [f"{number} {_on_one_line(name)}" for name, number in Counter(self.names).most_common()]
        scores = f"; scores {self.scores.max():.2f} to {self.scores.min():.2f}"
        return one_line(f"{beginning}: ", each, f"{scores}{notes})", _LINE)

    def _repr_html_(self) -> str:
        """A table of the objects, for notebooks."""
        rows = [
            f"<tr><td>{html.escape(name)}</td><td>{score:.3f}</td><td>{', '.join(f'{x:.1f}' for x in box)}</td></tr>"
            for name, score, box in zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        ]
        more = f"<p>and {len(rows) - _TABLE_ROWS} more</p>" if len(rows) > _TABLE_ROWS else ""
        notes = "".join(f"<p>The image {html.escape(note)}.</p>" for note in self.notes)
        head = "<tr><th>class</th><th>score</th><th>box: x0, y0, x1, y1 in pixels</th></tr>"
        size = f"{self.size[1]} x {self.size[0]} pixels"
        return (
            f"<div><p>{counted(len(self), 'object')} in an image of {size}</p>{notes}"
            f"<table>{head}{''.join(rows[:_TABLE_ROWS])}</table>{more}</div>"
        )

    def only(self, labels: Collection[int] | None = None, *, max_detections: int | None = None) -> "ImageDetections":
        """The objects of some classes, or those with the highest scores.

        Args:
          labels: labels of the classes to keep; None keeps all.
          max_detections: the largest number of objects to keep, highest scores first; None keeps all.

        Raises:
          ValueError: ``max_detections`` is negative.
        """
        if max_detections is not None and max_detections < 0:
            raise ValueError(f"max_detections={max_detections} must not be negative.")
        kept = [i for i, label in enumerate(self.labels.tolist()) if labels is None or label in labels]
        kept = kept[:max_detections]
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            labels=self.labels[kept],
            names=tuple(self.names[i] for i in kept),
            run_lengths=None if self.run_lengths is None else tuple(self.run_lengths[i] for i in kept),
        )

    def masks(self) -> np.ndarray:
        """The masks [n, H, W] bool of the objects, in the size of the image.

        Raises:
          ValueError: masks were not asked for.
        """
        if self.run_lengths is None:
            raise ValueError("These detections have no masks: predict with masks=True.")
        found = np.zeros((len(self), *self.size), bool)
        for place, runs in zip(found, self.run_lengths, strict=True):
            place[:] = decoded(runs)
        return found

    def draw(self, image: ImageLike) -> Image.Image:
        """The image with boxes, names and scores, and masks if they were asked for.

        Images below 320 pixels are enlarged, or captions would hide them.

        Args:
          image: the predicted image as a path, a PIL image or an array. The EXIF orientation of a file is applied.

        Raises:
          DataError: the image cannot be read.
          ValueError: it has another size than the predicted one.
        """
        picture = opened_like(image, self.size)
        names = dict(zip(self.labels.tolist(), self.names, strict=True))
        scale = max(1, round(_LEAST_SIDE / max(self.size)))
        masks = None if self.run_lengths is None else self.masks()
        return draw_boxes(picture, LabelledBoxes(self.boxes, self.labels, self.scores, masks), names, scale=scale)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """The objects as COCO's result dictionaries, whose ``bbox`` is [x, y, width, height] in pixels.

        If masks were asked for, ``segmentation`` holds their run lengths.
        """
        bboxes = xyxy_to_xywh(self.boxes.astype(np.float64)).tolist()
        masks = [{}] * len(self) if self.run_lengths is None else [{"segmentation": runs} for runs in self.run_lengths]
        return [
            {"image_id": image_id, "category_id": label, "bbox": bbox, "score": score, **mask}
            for label, bbox, score, mask in zip(self.labels.tolist(), bboxes, self.scores.tolist(), masks, strict=True)
        ]

    def to_supervision(self) -> Any:
        """The objects as ``supervision.Detections``, with the names as ``data["class_name"]``, and masks if there are.

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
            mask=None if self.run_lengths is None else self.masks(),
            data={"class_name": np.array(self.names, dtype=str)},
        )


def opened_like(image: ImageLike, size: tuple[int, int]) -> np.ndarray:
    """The pixels [H, W, 3] uint8 of an image of (height, width) ``size``.

    Raises:
      DataError: the image cannot be read.
      ValueError: it has another size.
    """
    opened, found = open_image(image, "The image")
    if found != tuple(size):
        raise ValueError(
            f"The image has {found[1]} x {found[0]} pixels, and these objects were found in one of "
            f"{size[1]} x {size[0]} (width x height): give the image that was predicted."
        )
    return np.asarray(decode(opened) if isinstance(opened, Path) else opened)


@dataclass(frozen=True, eq=False, repr=False)
class ImageAttention:
    """The attention weights of a model in one image (DETR, figures 3 and 6).

    They come from the last encoder and decoder layers and are averaged over the heads. A notebook shows the picture
    that `draw` returns.

    Dimensions: ``n`` objects; ``h, w`` cells of the feature map that cover the image. A map over ``h, w`` sums to 1.
    """

    image: np.ndarray
    """[H, W, 3] uint8, RGB."""
    found: ImageDetections
    """The detected objects, highest score first."""
    decoder: np.ndarray
    """[n, h, w] float32, cross-attention from the query of each object to the cells."""
    encoder: np.ndarray | None
    """[h, w, h, w] float32, self-attention from each cell (first two) to all cells (last two).

    None if the model has no encoder."""
    cells: tuple[float, float]
    """(height, width) of the image in cells. The last row and column of cells may extend beyond its border."""

    def __repr__(self) -> str:
        cells = f"{self.decoder.shape[2]} x {self.decoder.shape[1]} cells"
        end = "" if self.encoder is not None else ", no encoder"
        width, height = self.found.size[1], self.found.size[0]
        return f"ImageAttention({counted(len(self.found), 'object')} in {width} x {height} pixels, {cells}{end})"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The picture, for notebooks."""
        return _picture_bundle(self.draw(), repr(self))

    def draw(
        self, points: Sequence[tuple[float, float]] | None = None, *, max_detections: int = MOST_OBJECTS
    ) -> Image.Image:
        """The picture of `detr_jax.visualization.attention.attention_sheet`: a heat map for each object and point."""
        return attention_sheet(self, points, max_detections=max_detections)

    def of_point(self, x: float, y: float) -> np.ndarray:
        """The encoder's attention [h, w] from the cell that holds the point (x, y), in pixels of the image.

        Raises:
          ValueError: the point lies outside of the image, or the model has no encoder.
        """
        height, width = self.found.size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"The point ({x:g}, {y:g}) lies outside of the image, {width} x {height} pixels.")
        if self.encoder is None:
            raise ValueError("The model has no encoder, so there is no attention from a point.")
        return self.encoder[int(y / height * self.cells[0]), int(x / width * self.cells[1])]


@dataclass(frozen=True, eq=False, repr=False)
class ImageSampling:
    """The points of an image that a Deformable DETR reads for each object (Deformable DETR, figure 6).

    They are the points of the last decoder layer. A notebook shows the picture that `draw` returns.

    Dimensions: ``n`` objects, ``A`` heads, ``M`` levels, ``P`` points of a level.
    """

    image: np.ndarray
    """[H, W, 3] uint8, RGB."""
    found: ImageDetections
    """The detected objects, highest score first."""
    places: np.ndarray
    """[n, A, M, P, 2] float32, (x, y) in pixels of the image; some lie outside of it."""
    weights: np.ndarray
    """[n, A, M, P] float32, with the sum 1 for each head of an object."""

    def __repr__(self) -> str:
        points = math.prod(self.weights.shape[1:])
        width, height = self.found.size[1], self.found.size[0]
        return f"ImageSampling({counted(len(self.found), 'object')} in {width} x {height} pixels, {points} points each)"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """The picture, for notebooks."""
        return _picture_bundle(self.draw(), repr(self))

    def draw(
        self, points: Sequence[tuple[float, float]] | None = None, *, max_detections: int = MOST_OBJECTS
    ) -> Image.Image:
        """The picture of `detr_jax.visualization.sampling.sampling_sheet`: the points of each object.

        Raises:
          ValueError: ``points`` are given, as for the encoder of a DETR.
        """
        if points:
            raise ValueError("A Deformable DETR has no attention maps of its encoder: give no points.")
        return sampling_sheet(self, max_detections=max_detections)


def _picture_bundle(picture: Image.Image, text: str) -> dict[str, Any]:
    content = io.BytesIO()
    picture.save(content, "PNG")
    return {"image/png": base64.b64encode(content.getvalue()).decode(), "text/plain": text}


def _on_one_line(name: str) -> str:
    """A name without line breaks, of at most 24 characters."""
    name = " ".join(name.split())
    return name if len(name) <= 24 else f"{name[:21]}..."
