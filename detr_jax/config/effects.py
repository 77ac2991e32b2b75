"""Fields that have no effect in a configuration, because another field makes them useless."""

import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any

from detr_jax.config.data import AUTO, DataConfig
from detr_jax.config.run import Config

SOURCE_FIELDS = ("root", "train_split", "val_split", "val_share", "exif", "max_level")
"""Fields of ``data`` that say where a data set is and how it is read, whatever its kind."""

_CONDITIONS: tuple[tuple[str, Callable[[Config], Any], str], ...] = (
    ("data.crop_min", lambda c: c.data.crop_short_sides, "data.crop_short_sides is empty"),
    ("data.crop_max", lambda c: c.data.crop_short_sides, "data.crop_short_sides is empty"),
    ("data.num_train_buckets", lambda c: not c.data.train_buckets, "data.train_buckets is given"),
    ("data.num_val_buckets", lambda c: not c.data.val_buckets, "data.val_buckets is given"),
    ("data.max_skipped", lambda c: c.data.on_error == "skip", 'data.on_error is not "skip"'),
    ("loss.auxiliary", lambda c: getattr(c.model, "decoder_layers", None) != 1, "model.decoder_layers is 1"),
    ("optimizer.drop_epoch", lambda c: c.optimizer.schedule == "step", 'optimizer.schedule is not "step"'),
    ("training.epochs", lambda c: c.training.steps is None, "training.steps is given"),
    ("training.follow_checkpoint", lambda c: c.training.init_from, "training.init_from is empty"),
    ("training.early_stop", lambda c: c.evaluation.every_epochs, "evaluation.every_epochs is 0"),
    ("evaluation.snapshots", lambda c: c.evaluation.pictures, "evaluation.pictures is 0"),
    ("evaluation.picture_threshold", lambda c: c.evaluation.pictures, "evaluation.pictures is 0"),
)
"""A field, whether it has an effect, and why not."""


def source_field_faults(data: DataConfig) -> Iterator[str]:
    """A sentence for each field that was set and has no effect on the chosen data set.

    Such a field belongs to the entry of another data set in ``data.sources``, or the chosen data set ignores it. Unused
    entries are allowed if they generate data or are not among the default entries.
    """
    if data.dataset == AUTO or data.dataset not in data.sources:
        return
    for name in data.sources[data.dataset].ignored:
        if _is_set(data, name):
            kinds = [kind for kind, source in data.sources.items() if name not in source.ignored]
            yield _no_effect(f"data.{name}", getattr(data, name), data.dataset, kinds)
    for name, (source, unused) in _default_entries(data).items():
        for f in dataclasses.fields(source) if name != data.dataset and not source.generated else ():
            if (value := getattr(source, f.name)) != getattr(unused, f.name):
                yield _no_effect(f"data.sources.{name}.{f.name}", value, data.dataset, [name])


def _no_effect(path: str, value: Any, dataset: str, kinds: Collection[str]) -> str:
    only = " or ".join(map(repr, kinds))
    return f"{path}={value!r} has no effect with data.dataset={dataset!r}, only with {only}: remove it."


def ineffective(config: Config) -> Iterator[str]:
    """A sentence for each other field that was set and has no effect."""
    for name, (source, unused) in _default_entries(config.data).items():
        if source.generated and source != unused and config.data.dataset != name:
            yield f"data.sources.{name} has no effect, as data.dataset is not {name!r}."
    for path, has_effect, reason in _CONDITIONS:
        section, name = path.split(".")
        node = getattr(config, section)
        if _is_set(node, name) and not has_effect(config):
            yield f"{path}={getattr(node, name)!r} has no effect, as {reason}."


def without_source(data: DataConfig, *, keep: Collection[str] = ()) -> DataConfig:
    """The configuration with the fields that say where a data set is at their defaults, except for those to
    ``keep``. Data sets that are generated, and those that are not among the default ones, keep their fields."""
    new = DataConfig()
    sources = dict(data.sources)
    for name, (source, unused) in _default_entries(data).items():
        sources[name] = source if source.generated else unused
    fields = {name: getattr(new, name) for name in (*SOURCE_FIELDS, "dataset") if name not in keep}
    return dataclasses.replace(data, sources=new.sources | sources, **fields)


def _default_entries(data: DataConfig) -> dict[str, tuple[Any, Any]]:
    """Entries of ``data.sources`` that have the class of the default entry of that name, each with that one."""
    default = DataConfig().sources
    return {
        name: (source, default[name])
        for name, source in data.sources.items()
        if name in default and type(source) is type(default[name])
    }


def _is_set(section: Any, name: str) -> bool:
    """Whether a field differs from its default."""
    return getattr(section, name) != getattr(type(section)(), name)
