"""The folder of a configuration: which kind of data set it is, and which splits it has."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from detr_jax.config import ConfigError, DataConfig, FolderConfig
from detr_jax.config.effects import source_field_faults
from detr_jax.data.layouts import Layout
from detr_jax.data.source import DataError

_LOOKED_INTO = 8  # folders in one that is not a data set


def find_layout(data: DataConfig) -> Layout | None:
    """How the folder of a data set is laid out; None for data sets that are not a folder of images.

    Raises:
      ConfigError: a field has no effect on data of this kind, or the kind is not known.
      DataError: the folder does not exist, or is not a data set of a kind that is known.
    """
    _check_fields(data)
    kinds = _folder_kinds(data)
    if data.dataset != "auto":
        kinds = {name: source for name, source in kinds.items() if name == data.dataset}
    if not kinds:
        return None
    root = Path(data.root)
    if root.is_file():
        raise DataError(f"data.root={data.root} is a file: give the folder of the data set.")
    if not root.is_dir():
        where = "" if root.is_absolute() else f", seen from {Path.cwd()}"
        raise DataError(f"The folder data.root={data.root} does not exist{where}: give the root of the data set.")
    quick = {name: source for name, source in kinds.items() if not source.lists_all_files}
    found = [layout for name, source in quick.items() if (layout := _recognised(name, source, root))]
    for name, source in kinds.items():  # only then, as all files must be listed for them
        if not found and source.lists_all_files and (layout := _recognised(name, source, root)):
            found.append(layout)
    if len(found) > 1:
        several = " or ".join(f"data.dataset={layout.kind}" for layout in found)
        raise DataError(f"data.root={data.root} can be read as several kinds of data set: set {several}.")
    if not found:
        for source in kinds.values():
            source.raise_reason(root)
        raise DataError(_not_found(data, root))
    _check_fields(dataclasses.replace(data, dataset=found[0].kind))
    return found[0]


def _check_fields(data: DataConfig) -> None:
    faults = [*data.source_faults(), *source_field_faults(data)]
    if faults:
        raise ConfigError("\n".join(faults))


def _folder_kinds(data: DataConfig) -> Mapping[str, FolderConfig]:
    return {name: source for name, source in data.sources.items() if isinstance(source, FolderConfig)}


def _recognised(name: str, source: FolderConfig, root: Path) -> Layout | None:
    layout = source.recognise(root)
    return None if layout is None else dataclasses.replace(layout, kind=name)


def _not_found(data: DataConfig, root: Path) -> str:
    kinds = _folder_kinds(data)
    if data.dataset == "auto":
        there = ", ".join(sorted(child.name for child in root.iterdir())[:8]) or "nothing"
        below = [child for child in sorted(root.iterdir()) if child.is_dir()][:_LOOKED_INTO]
        near = [folder for folder in (*below, root.parent) if _is_data_set(folder)]
        hint = f"; {near[0]} is one: give that" if near else ""
        wanted = dict.fromkeys(source.wanted for source in kinds.values())
        return (
            f"data.root={data.root} is not recognised as a data set (it holds {there}){hint}: it must have "
            f"{', or '.join(wanted)}."
        )
    chosen = kinds[data.dataset]
    others = [name for name, source in kinds.items() if source is not chosen and _looks_like(source, root)]
    hint = f"; it looks like {others[0]}: set data.dataset={others[0]}" if others else ""
    return f"data.root={data.root} does not have {chosen.wanted}, as data.dataset={data.dataset} needs{hint}."


def _is_data_set(folder: Path) -> bool:
    return any(_looks_like(source, folder) for source in _folder_kinds(DataConfig()).values())


def _looks_like(source: FolderConfig, root: Path) -> bool:
    try:
        return source.recognise(root) is not None
    except DataError:
        return False
