"""`Instances`: the checked annotations of a data set as a few arrays.

Dimensions: ``I`` images, ``n`` objects to train on, ``m`` annotations to evaluate against.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from detr_jax.data.labels import mapped
from detr_jax.data.masks import Masks, Segmentations, run_lengths
from detr_jax.data.source import Faults, Objects


class _Packed:
    """Many short pieces of bytes, stored in two arrays.

    A list of objects would take ten times the memory, and would be copied to each process.
    """

    def __init__(self, pieces: Sequence[bytes]):
        self.ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int64)
        self.content = np.frombuffer(b"".join(pieces), np.uint8)

    @classmethod
    def of_arrays(cls, ends: np.ndarray, content: np.ndarray) -> Self:
        """A sequence from the arrays ``ends`` [n] int64 and ``content`` [bytes] uint8 of another instance."""
        packed = cls(())
        packed.ends, packed.content = ends, content
        return packed

    def __len__(self) -> int:
        return len(self.ends)

    def piece(self, index: int) -> bytes:
        """One piece."""
        end = int(self.ends[index])
        start = int(self.ends[index - 1]) if index % len(self.ends) else 0
        return self.content[start:end].tobytes()


class PackedBytes(_Packed, Sequence[bytes]):
    """A sequence of many short pieces of bytes, stored in two arrays."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.piece(index)


class PackedTexts(_Packed, Sequence[str]):
    """A sequence of many short texts, stored in two arrays."""

    def __init__(self, texts: Sequence[str]):
        super().__init__([text.encode(errors="surrogateescape") for text in texts])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.piece(index).decode(errors="surrogateescape")


@dataclass(frozen=True, eq=False)
class MaskColumns:
    """Where the masks of annotations come from: from ``segmentations``, or from an image of ids."""

    rows: np.ndarray
    """[n] int64, the position of each object to train on among the ``m`` annotations."""
    segmentations: PackedBytes | None = None
    """[m] the JSON of each annotation's ``segmentation``."""
    segment_ids: np.ndarray | None = None
    """[m] int64, the id of each annotation's pixels in its panoptic PNG."""

    def select(self, objects: np.ndarray, annotations: np.ndarray) -> "MaskColumns":
        """The columns of some objects [n] bool and annotations [m] bool."""
        new_position = np.cumsum(annotations) - 1
        texts, ids = self.segmentations, self.segment_ids
        kept = np.flatnonzero(annotations).tolist()
        return MaskColumns(
            new_position[self.rows[objects]],
            None if texts is None else PackedBytes([texts[i] for i in kept]),
            None if ids is None else ids[annotations],
        )


@dataclass(frozen=True)
class Truth:
    """The ground truth of the evaluation, in the order of the file."""

    image: np.ndarray
    """[m] int32, the index of each annotation's image."""
    labels: np.ndarray
    """[m] int64."""
    boxes: np.ndarray
    """[m, 4] float64, xywh in pixels."""
    areas: np.ndarray
    """[m] float64, in pixels."""
    crowds: np.ndarray
    """[m] bool, whether the evaluation ignores detections there."""

    @classmethod
    def empty(cls) -> "Truth":
        """A ground truth without annotations."""
        nothing = np.zeros(0)
        return cls(nothing.astype(np.int32), nothing.astype(np.int64), np.zeros((0, 4)), nothing, nothing.astype(bool))

    def select(self, kept: np.ndarray) -> "Truth":
        """The annotations of the images of the mask ``kept`` [I] bool. The images are numbered again without gaps."""
        rows, new_index = kept[self.image], np.cumsum(kept) - 1
        columns = (getattr(self, field.name)[rows] for field in dataclasses.fields(self))
        image, *rest = columns
        return Truth(new_index[image].astype(np.int32), *rest)


@dataclass(frozen=True)
class Instances:
    """The usable annotations of a data set."""

    categories: dict[int, str]
    """Name by label; no two names are the same."""
    category_ids: dict[int, int]
    """Category id by label; empty if the labels are the ids."""
    image_ids: np.ndarray
    """[I] int64."""
    file_names: Sequence[str]
    """[I] the file name of each image, as it is written in the annotations."""
    sizes: np.ndarray
    """[I, 2] int64, (height, width) in pixels."""
    starts: np.ndarray
    """[I + 1] int64: the objects of image ``i`` are the rows ``starts[i]`` to ``starts[i + 1]``."""
    boxes: np.ndarray
    """[n, 4] float32, xyxy in pixels. Boxes lie within their image and have an area. Crowds are not among them."""
    labels: np.ndarray
    """[n] int64."""
    truth: Truth
    """The annotations to evaluate against."""
    faults: Faults
    """The faults of the annotations that were dropped or changed."""
    masks: MaskColumns | None = None
    """None: masks are not read."""

    def objects(self, index: int) -> Objects:
        """The objects of an image to train on."""
        rows = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return Objects(self.boxes[rows], self.labels[rows].astype(np.int32), self._masks(index, rows))

    def _masks(self, index: int, rows: slice) -> Masks | None:
        if self.masks is None or self.masks.segmentations is None:
            return None
        texts, (height, width) = self.masks.segmentations, self.sizes[index].tolist()
        return Masks.of(Segmentations([texts[row] for row in self.masks.rows[rows].tolist()], (height, width)))

    def select(self, kept: np.ndarray) -> "Instances":
        """The images of the mask ``kept`` [I] bool with their annotations."""
        counts = np.diff(self.starts)
        rows = np.repeat(kept, counts)
        return dataclasses.replace(
            self,
            image_ids=self.image_ids[kept],
            file_names=PackedTexts([name for name, keep in zip(self.file_names, kept, strict=True) if keep]),
            sizes=self.sizes[kept],
            starts=np.concatenate([[0], np.cumsum(counts[kept])]),
            boxes=self.boxes[rows],
            labels=self.labels[rows],
            truth=self.truth.select(kept),
            masks=None if self.masks is None else self.masks.select(rows, kept[self.truth.image]),
        )

    def relabelled(self, label_of: Mapping[int, int]) -> "Instances":
        """The same annotations with the label ``label_of[id]`` for each category id.

        The old labels must be category ids.
        """
        return dataclasses.replace(
            self,
            categories={label_of[category_id]: name for category_id, name in self.categories.items()},
            category_ids={label_of[category_id]: category_id for category_id in self.categories},
            labels=mapped(self.labels, label_of),
            truth=dataclasses.replace(self.truth, labels=mapped(self.truth.labels, label_of)),
        )

    def ground_truth(self) -> dict[str, Any]:
        """The ground truth as an instances JSON. Ids start at 1, because 0 means "no match" in the evaluation."""
        images = [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for image_id, name, (height, width) in zip(
                self.image_ids.tolist(), self.file_names, self.sizes.tolist(), strict=True
            )
        ]
        truth = self.truth
        columns = (self.image_ids[truth.image], truth.labels, truth.boxes, truth.areas, truth.crowds.astype(int))
        annotations = [
            {"id": i, "image_id": image_id, "category_id": label, "bbox": box, "area": area, "iscrowd": crowd}
            for i, (image_id, label, box, area, crowd) in enumerate(
                zip(*(column.tolist() for column in columns), strict=True), start=1
            )
        ]
        if self.masks is not None and (texts := self.masks.segmentations) is not None:
            for annotation, image, text in zip(annotations, truth.image.tolist(), texts, strict=True):
                annotation["segmentation"] = run_lengths(text, tuple(self.sizes[image].tolist()))
        categories = [{"id": label, "name": name} for label, name in self.categories.items()]
        return {"images": images, "annotations": annotations, "categories": categories}
