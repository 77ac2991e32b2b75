"""Fields that have no effect in a configuration, because another field makes them useless."""

import dataclasses
import operator
from collections.abc import Callable, Collection, Iterator
from typing import Any

from detr_jax.config.data import DataConfig
from detr_jax.config.run import Config

_FILES = ("coco", "yolo", "voc", "labelme", "tfds")

_FORMATS: dict[str, tuple[str, ...]] = {
    "train_images": ("coco",),
    "train_annotations": ("coco",),
    "val_images": ("coco",),
    "val_annotations": ("coco",),
    "yolo_file": ("yolo",),
    "yolo_rows": ("yolo",),
    "voc_one_based": ("voc",),
    "tfds_name": ("tfds",),
    "tfds_val_annotations": ("tfds",),
    "train_split": _FILES,
    "val_split": _FILES,
    "val_share": _FILES[:-1],
    "exif": _FILES,
    "max_level": _FILES,
    "root": _FILES,
}
"""The data sets for which a field of ``data`` has an effect; all of them if it is not listed."""

FORMAT_FIELDS = tuple(_FORMATS)
"""Fields of ``data`` that say where a data set is and how it is read."""

_CONDITIONS: tuple[tuple[str, Callable[[Config], Any], str], ...] = (
    ("data.shapes", lambda c: c.data.dataset == "shapes", 'data.dataset is not "shapes"'),
    ("data.crop_min", lambda c: c.data.crop_short_sides, "data.crop_short_sides is empty"),
    ("data.crop_max", lambda c: c.data.crop_short_sides, "data.crop_short_sides is empty"),
    ("data.num_train_buckets", lambda c: not c.data.train_buckets, "data.train_buckets is given"),
    ("data.num_val_buckets", lambda c: not c.data.val_buckets, "data.val_buckets is given"),
    ("data.max_skipped", lambda c: c.data.on_error == "skip", 'data.on_error is not "skip"'),
    ("loss.auxiliary", lambda c: c.model.decoder_layers > 1, "model.decoder_layers is 1"),
    ("optimizer.drop_epoch", lambda c: c.optimizer.schedule == "step", 'optimizer.schedule is not "step"'),
    ("training.epochs", lambda c: c.training.steps is None, "training.steps is given"),
    ("training.follow_checkpoint", lambda c: c.training.init_from, "training.init_from is empty"),
    ("training.early_stop", lambda c: c.evaluation.every_epochs, "evaluation.every_epochs is 0"),
    ("evaluation.snapshots", lambda c: c.evaluation.pictures, "evaluation.pictures is 0"),
    ("evaluation.picture_threshold", lambda c: c.evaluation.pictures, "evaluation.pictures is 0"),
)
"""A field, whether it has an effect, and why not."""


def format_faults(data: DataConfig) -> Iterator[str]:
    """Sentences about fields of other kinds of data sets that were set."""
    for name, kinds in _FORMATS.items():
        if data.dataset != "auto" and data.dataset not in kinds and _is_set(data, name):
            yield (
                f"data.{name}={getattr(data, name)!r} has no effect with data.dataset={data.dataset!r}, only with "
                f"{' or '.join(map(repr, kinds))}: leave it out."
            )
    for split in ("train", "val"):
        given = [name for name in (f"{split}_images", f"{split}_annotations") if _is_set(data, name)]
        if given and _is_set(data, f"{split}_split"):
            yield (
                f"data.{split}_split={getattr(data, f'{split}_split')!r} has no effect, as data.{given[0]}="
                f"{getattr(data, given[0])!r} is given: leave one of them out (--config.data.{given[0]}= empties it)."
            )
    for name in ("val_split", "val_annotations"):
        if data.val_share and _is_set(data, name):
            yield f"data.val_share={data.val_share} has no effect, as data.{name} is given: leave one of them out."


def ineffective(config: Config) -> Iterator[str]:
    """A sentence for each other field that was set and has no effect."""
    for path, has_effect, reason in _CONDITIONS:
        section, name = path.split(".")
        if _is_set(getattr(config, section), name) and not has_effect(config):
            value = operator.attrgetter(path)(config)
            shown = path if dataclasses.is_dataclass(value) else f"{path}={value!r}"
            yield f"{shown} has no effect, as {reason}."


def without_format(data: DataConfig, *, keep: Collection[str] = ()) -> DataConfig:
    """The configuration with the fields that say where a data set is at their defaults, except for those to
    ``keep``."""
    new = DataConfig()
    fields = {name: getattr(new, name) for name in (*FORMAT_FIELDS, "dataset") if name not in keep}
    return dataclasses.replace(data, **fields)


def _is_set(section: Any, name: str) -> bool:
    """Whether a field differs from its default."""
    return getattr(section, name) != getattr(type(section)(), name)
