"""The folder of a configuration: which kind of data set it is, and which splits it has."""

import contextlib
import dataclasses
from pathlib import Path

from detr_jax.config import ConfigError, DataConfig
from detr_jax.config.effects import format_faults, without_format
from detr_jax.data import coco_layouts
from detr_jax.data.coco_layouts import CocoSplit
from detr_jax.data.labelme import recognise_labelme
from detr_jax.data.layouts import Layout, meaning
from detr_jax.data.source import DataError
from detr_jax.data.voc import recognise_voc
from detr_jax.data.yolo import recognise_yolo
from detr_jax.data.yolo_layout import description_file, read_layout

_LOOKED_INTO = 8  # folders in one that is not a data set
_KINDS = ("coco", "yolo", "voc", "labelme")


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
    if root.is_file():
        raise DataError(f"data.root={data.root} is a file: give the folder of the data set.")
    if not root.is_dir():
        where = "" if root.is_absolute() else f", seen from {Path.cwd()}"
        raise DataError(f"The folder data.root={data.root} does not exist{where}: give the root of the data set.")
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
        below = [child for child in sorted(root.iterdir()) if child.is_dir()][:_LOOKED_INTO]
        near = [folder for folder in (*below, root.parent) if _is_data_set(folder, data)]
        hint = f"; {near[0]} is one: give that" if near else ""
        return (
            f"data.root={data.root} is not recognised as a data set (it holds {there}){hint}: it must have "
            f"{', or '.join(wanted.values())}."
        )
    others = [kind for kind in _KINDS if kind != data.dataset and _looks_like(kind, root, data)]
    hint = f"; it looks like {others[0]}: set data.dataset={others[0]}" if others else ""
    return f"data.root={data.root} does not have {wanted[data.dataset]}, as data.dataset={data.dataset} needs{hint}."


def _is_data_set(folder: Path, data: DataConfig) -> bool:
    return any(_looks_like(kind, folder, without_format(data)) for kind in _KINDS)


def _looks_like(kind: str, root: Path, data: DataConfig) -> bool:
    try:
        return _recognised(kind, root, data) is not None
    except DataError:
        return False
