"""Earlier names of configuration fields, which JSON files and the command line may still use."""

from typing import Any

RENAMED = {
    "data.train_images": "data.sources.coco.train_images",
    "data.train_annotations": "data.sources.coco.train_annotations",
    "data.val_images": "data.sources.coco.val_images",
    "data.val_annotations": "data.sources.coco.val_annotations",
    "data.yolo_file": "data.sources.yolo.file",
    "data.yolo_rows": "data.sources.yolo.rows",
    "data.voc_one_based": "data.sources.voc.one_based",
    "data.tfds_name": "data.sources.tfds.name",
    "data.tfds_val_annotations": "data.sources.tfds.val_annotations",
    "data.shapes": "data.sources.shapes",
    "loss.class_weight": "loss.terms.ce.weight",
    "loss.bbox_weight": "loss.terms.bbox.weight",
    "loss.giou_weight": "loss.terms.giou.weight",
    "loss.eos_coefficient": "loss.terms.ce.no_object",
    "loss.cost_class": "loss.costs.class.weight",
    "loss.cost_bbox": "loss.costs.bbox.weight",
    "loss.cost_giou": "loss.costs.giou.weight",
}
"""The present path of a field or section by its earlier path."""

_OLD_DEFAULTS = {  # of fields of data that are empty now if the folder's own layout is to be found
    "train_images": "train2017",
    "train_annotations": "annotations/instances_train2017.json",
    "val_images": "val2017",
    "val_annotations": "annotations/instances_val2017.json",
    "yolo_file": "data.yaml",
    "train_split": "train",
}


def current_path(path: str) -> str:
    """The present path of a field, such as ``data.sources.yolo.file`` for ``data.yolo_file``; else the path itself."""
    for old, new in RENAMED.items():
        if path == old or path.startswith(f"{old}."):
            return new + path.removeprefix(old)
    return path


def with_old_defaults(values: Any) -> Any:
    """Values of a JSON configuration with empty fields for defaults that an earlier version wrote out."""
    data = values.get("data") if isinstance(values, dict) else None
    if not isinstance(data, dict) or "exif" in data:
        return values
    old = {name: "" for name, default in _OLD_DEFAULTS.items() if data.get(name) == default}
    return values | {"data": data | old}


def take_renamed(values: Any) -> tuple[Any, list[tuple[str, Any]]]:
    """Split a JSON configuration into what has its present name, and (present path, value) of what was renamed."""
    found: list[tuple[str, Any]] = []
    for old, new in RENAMED.items():
        section, name = old.split(".")
        there = values.get(section) if isinstance(values, dict) else None
        if isinstance(there, dict) and name in there:
            found.append((new, there[name]))
            values = values | {section: {key: value for key, value in there.items() if key != name}}
    return values, found
