"""From a configuration to its data: the kind of the data set, its splits, and labels that both splits share."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detr_jax.config import Config, ConfigError, DataConfig
from detr_jax.config.effects import format_faults
from detr_jax.data import coco_layouts
from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.data.coco import CocoDataset
from detr_jax.data.coco_layouts import CocoSplit
from detr_jax.data.comparison import compare_splits
from detr_jax.data.image_paths import unlisted
from detr_jax.data.images import exif_rule
from detr_jax.data.labelme import LabelmeDataset, recognise_labelme
from detr_jax.data.labels import label_map
from detr_jax.data.layouts import Layout, meaning
from detr_jax.data.shapes import ShapesDataset
from detr_jax.data.source import DataError, Source
from detr_jax.data.voc import VocDataset, recognise_voc
from detr_jax.data.yolo import YoloDataset, recognise_yolo
from detr_jax.data.yolo_layout import description_file, read_layout
from detr_jax.wording import counted

_KINDS = ("coco", "yolo", "voc", "labelme")


def open_source(
    config: Config, split: str, *, strict: bool = True, category_ids: Mapping[int, int] | None = None
) -> Source:
    """One split of the data set of a configuration, "train" or "val", checked against the model's classes.

    With ``data.on_error="skip"``, training images that cannot even be opened are dropped and counted.

    Args:
      config: names the data set. A folder without splits is evaluated on as a whole if ``data.val_share`` is 0.
      split: "train" or "val".
      strict: raise on errors. If False, they are dropped and counted in the source's ``faults``, and the number of
        classes is not checked; nor is it if ``model.num_classes`` is 0.
      category_ids: those of a trained model by label, see `detr_jax.data.labels.label_map`.

    Raises:
      ConfigError: a field has no effect on data of this kind.
      DataError: the data cannot be used, has more images that cannot be opened than ``data.max_skipped`` allows, or has
        labels for which ``model.num_classes`` is too small.
    """
    layout = find_layout(config.data)
    source = _checked(_open(config.data, layout, split, strict, alone=True), config, strict)
    _relabel(config, [source], category_ids, strict)
    return source


def open_splits(config: Config, *, category_ids: Mapping[int, int] | None = None) -> tuple[Source, Source]:
    """The training and the validation split, compared with each other; arguments and errors are those of `open_source`.

    Raises:
      DataError: also if the splits do not fit each other, as when an id has two names.
    """
    layout = find_layout(config.data)
    train, val = (_checked(_open(config.data, layout, split, True), config, True) for split in ("train", "val"))
    compare_splits(train, val)
    _note_unlisted(layout, [train, val])
    val.faults.raise_first()
    _relabel(config, [train, val], category_ids, True)
    return train, val


def open_to_check(config: Config, splits: Sequence[str]) -> dict[str, Source | DataError]:
    """Each split with its faults counted, or the error that keeps it from being opened; two are compared."""
    layout = find_layout(config.data)
    opened: dict[str, Source | DataError] = {}
    for split in splits:
        try:
            opened[split] = _checked(_open(config.data, layout, split, False), config, False)
        except DataError as error:
            opened[split] = error
    sources = [source for source in opened.values() if not isinstance(source, DataError)]
    if len(sources) == 2:
        compare_splits(*sources)
    _note_unlisted(layout, sources)
    _relabel(config, sources, None, False)
    return opened


def _note_unlisted(layout: Layout | None, sources: Sequence[Source]) -> None:
    """Notes images in COCO's folders that no annotations list; not of folders with a split that was not opened."""
    if layout is None or layout.kind != "coco":
        return
    opened = [source for source in sources if isinstance(source, CocoDataset)]
    files = {source.annotation_file for source in opened}
    closed = {place.images for place in layout.splits.values() if place.annotations not in files}
    listed: dict[Path, list[str]] = {}
    for source in opened:
        if source.image_folder not in closed:
            listed.setdefault(source.image_folder, []).extend(map(source.file_name, range(len(source))))
    if extra := unlisted(listed):
        opened[0].faults.note_all("image files are in its folders and not in its annotations", len(extra), extra)


def find_layout(data: DataConfig) -> Layout | None:
    """How the folder of a data set is laid out; None for data sets that are not a folder of images.

    Raises:
      ConfigError: a field has no effect on data of this kind.
      DataError: the folder does not exist, or is not a data set of a kind that is known.
    """
    if faults := list(format_faults(data)):
        raise ConfigError("\n".join(faults))
    if data.dataset in ("shapes", "tfds"):
        return None
    root = Path(data.root)
    if not root.is_dir():
        raise DataError(f"The folder data.root={data.root} does not exist: give the root of the data set.")
    if data.dataset == "auto":
        found = [layout for kind in _KINDS[:2] if (layout := _recognised(kind, root, data))]
        for kind in _KINDS[2:]:  # only then, as all files must be listed for them
            found = found or [layout for layout in [_recognised(kind, root, data)] if layout]
        if len(found) > 1:
            kinds = " or ".join(f"data.dataset={layout.kind}" for layout in found)
            raise DataError(f"data.root={data.root} can be read as several kinds of data set: set {kinds}.")
    else:
        found = [layout for layout in [_recognised(data.dataset, root, data)] if layout]
    if not found:
        if data.dataset in ("auto", "yolo") and (data.yolo_file or description_file(root)):
            read_layout(root / data.yolo_file)  # raises what is wrong with it
        raise DataError(_not_found(data, root))
    layout = found[0]
    if faults := list(format_faults(_of_kind(data, layout.kind))):
        raise ConfigError("\n".join(faults))
    return layout


def _recognised(kind: str, root: Path, data: DataConfig) -> Layout | None:
    if kind == "coco":
        given, there = _given_coco_splits(root, data), None
        if "train" in given and "val" in given:
            return Layout("coco", given, f"{root} is read as COCO from the files that are given")
        if not given:
            return coco_layouts.recognise(root)
        with contextlib.suppress(DataError):  # what is given may be all that can be found
            there = coco_layouts.recognise(root)
        others = {} if there is None else {n: place for n, place in there.splits.items() if meaning(n) not in given}
        return Layout("coco", others | given, f"{root} is read as COCO, partly from files that are given")
    if kind == "yolo":
        return recognise_yolo(root, data.yolo_file)
    return recognise_voc(root) if kind == "voc" else recognise_labelme(root)


def _given_coco_splits(root: Path, data: DataConfig) -> dict[str, CocoSplit]:
    """The splits of which the configuration names the annotation file."""
    splits = {}
    for split in ("train", "val"):
        images, annotations = getattr(data, f"{split}_images"), getattr(data, f"{split}_annotations")
        if annotations:
            file = root / annotations
            if not file.is_file():
                raise DataError(f"The annotation file {file} does not exist: correct data.{split}_annotations.")
            splits[split] = CocoSplit(root / images if images else coco_layouts.image_folder(file, root), file)
        elif images and (layout := coco_layouts.recognise(root)) and (name := layout.find(split, "")):
            splits[split] = CocoSplit(root / images, layout.splits[name].annotations)
    return splits


def _of_kind(data: DataConfig, kind: str) -> DataConfig:
    return dataclasses.replace(data, dataset=kind)


def _not_found(data: DataConfig, root: Path) -> str:
    wanted = {
        "coco": "an instances JSON (such as annotations/instances_train2017.json or train/_annotations.coco.json)",
        "yolo": "a data.yaml or classes.txt with text files of labels",
        "voc": "XML files of annotations (next to the images, or in Annotations/)",
        "labelme": "JSON files of labelme",
    }
    if data.dataset == "auto":
        there = ", ".join(sorted(child.name for child in root.iterdir())[:8]) or "nothing"
        return (
            f"data.root={data.root} is not recognised as a data set (it holds {there}): it must have "
            f"{', or '.join(wanted.values())}."
        )
    others = [kind for kind in _KINDS if kind != data.dataset and _looks_like(kind, root, data)]
    hint = f"; it looks like {others[0]}: set data.dataset={others[0]}" if others else ""
    return f"data.root={data.root} does not have {wanted[data.dataset]}, as data.dataset={data.dataset} needs{hint}."


def _looks_like(kind: str, root: Path, data: DataConfig) -> bool:
    try:
        return _recognised(kind, root, data) is not None
    except DataError:
        return False


def _open(data: DataConfig, layout: Layout | None, split: str, strict: bool, *, alone: bool = False) -> Source:
    if data.dataset == "shapes":
        return ShapesDataset(data.shapes, split)
    skip = strict and split == "train" and data.on_error == "skip"
    given = data.train_split if split == "train" else data.val_split
    if layout is None:
        try:
            from detr_jax.data.tfds import open_tfds  # takes a second to import, and much memory
        except Exception as error:  # it is missing, or another package's protobuf does not fit: any kind of error
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                "data.dataset=tfds needs the package tensorflow-datasets, which cannot be imported "
                f"({type(error).__name__}: {reason}): install it again with pip install --upgrade tensorflow-datasets, "
                "or use another data set; everything else works without it."
            ) from error
        return open_tfds(data, split, strict=strict, skip=skip)
    if (name := layout.find(split, given)) is not None:
        source = _read(data, layout, name, strict, skip)
        shared = split == "train" and data.val_share and layout.find("val", data.val_split) is None
        return _part(source, data, "train") if shared else source
    whole = layout.find("train", data.train_split)
    if whole is None:
        raise DataError(f"{layout.sentence}, and no split of it is for training: set data.train_split to one of them.")
    if data.val_share:
        return _part(_read(data, layout, whole, strict, skip), data, "val")
    if alone and meaning(whole) is None:
        return _read(data, layout, whole, strict, skip)
    raise layout.lacks_validation()


def _read(data: DataConfig, layout: Layout, name: str, strict: bool, skip: bool) -> AnnotatedDataset:
    source = _read_split(data, layout, name, strict, skip)
    source.origin = layout.sentence
    return source


def _read_split(data: DataConfig, layout: Layout, name: str, strict: bool, skip: bool) -> AnnotatedDataset:
    place: Any = layout.splits[name]
    decoding: Any = {"exif": exif_rule(data), "max_level": data.max_level}
    if layout.kind == "coco":
        return CocoDataset(place.images, place.annotations, strict=strict, **decoding)
    if layout.kind == "yolo":
        return YoloDataset(*place, strict=strict, skip=skip, rows=data.yolo_rows, **decoding)
    if layout.kind == "labelme":
        return LabelmeDataset(*place, strict=strict, skip=skip, **decoding)
    one_based = {"auto": None, "true": True, "false": False}[data.voc_one_based]
    return VocDataset(*place, strict=strict, skip=skip, one_based=one_based, **decoding)


def _part(source: AnnotatedDataset, data: DataConfig, split: str) -> AnnotatedDataset:
    """The training or the validation images of a data set without splits.

    Raises:
      DataError: one of the two parts has no image.
    """
    names = [source.file_name(index).replace("\\", "/").rpartition("/")[2] for index in range(len(source))]
    shares = np.array([share_of(name) for name in names])
    lowest, highest = shares.min(initial=1), shares.max(initial=0)
    if lowest == highest:
        raise DataError(
            f"data.val_share={data.val_share} needs two image files at least, of different names, and "
            f"{source.faults.where} has {len(names)}: add images, or name a split in data.val_split."
        )
    held_out = ((shares < data.val_share) | (shares == lowest)) & (shares != highest)  # neither part is empty
    return source.select(held_out if split == "val" else ~held_out)


def share_of(file_name: str) -> float:
    """A number in [0, 1) that follows from a file name; names below ``data.val_share`` are evaluated on."""
    return int.from_bytes(hashlib.blake2b(file_name.encode(errors="surrogateescape"), digest_size=6).digest()) / 2**48


def _checked(source: Source, config: Config, strict: bool) -> Source:
    data = config.data
    dropped = source.faults.left_out
    if dropped > data.max_skipped * (listed := dropped + len(source)):
        raise DataError(
            f"{dropped} of {listed} training images cannot be opened, which is more than data.max_skipped="
            f"{data.max_skipped} allows: repair or remove them, or raise the share. "
            + " ".join(source.faults.sentences())
        )
    if not source.max_objects and not data.allow_empty and data.dataset != "shapes" and not source.faults.errors:
        noted = "; ".join(f"{kind}: {number}" for kind, number in (source.faults.notes + source.faults.counts).items())
        source.faults.error(
            "splits without objects",
            f"no object to train on is in {counted(len(source), 'image')}{f' ({noted})' if noted else ''}: correct the "
            "annotations, or set data.allow_empty=True if this is meant",
        )
        if strict:
            source.faults.raise_first()
    return source


def _relabel(config: Config, sources: list[Source], category_ids: Mapping[int, int] | None, strict: bool) -> None:
    """Gives sparse category ids labels from 0 on, the same in all sources, and checks the number of classes."""
    annotated = [one for one in sources if isinstance(one, AnnotatedDataset)]
    label_of = label_map(*(source.categories for source in annotated), known=category_ids)
    for one in annotated:
        if label_of:
            one.relabel(label_of)
        elif (largest := max(one.categories, default=0)) >= 2**31:
            raise DataError(
                f"{one.faults.where} has category {largest}, and the labels of this model are category ids below "
                "2**31: give the categories smaller ids."
            )
    if strict and config.model.num_classes:
        for source in sources:
            check_classes(source, config.model.num_classes)


def check_classes(source: Source, num_classes: int) -> None:
    """Checks that a model of ``num_classes`` has an output for every class of a data set.

    Raises:
      DataError: it has not.
    """
    for label, name in source.categories.items():
        if not 0 <= label < num_classes:
            raise DataError(
                f"The data has category {label} ({name!r}), but model.num_classes={num_classes} only allows 0 to "
                f"{num_classes - 1}: set it to the highest category id plus 1, which is {max(source.categories) + 1}."
            )
