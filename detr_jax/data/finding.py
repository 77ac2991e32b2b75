"""Find out what kind of data set the folder of a configuration is, and which splits it has."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from detr_jax.config import ConfigError, DataConfig, FolderConfig
from detr_jax.config.effects import source_field_faults
from detr_jax.data.layouts import Layout
from detr_jax.data.own_sources import errors_of
from detr_jax.data.source import DataError

_LOOKED_INTO = 8  # subfolders that are searched for a data set if the folder itself is not one


def find_layout(data: DataConfig) -> Layout | None:
    """The layout of the folder of a data set. None for data sets that are not a folder of images.

    Raises:
      ConfigError: a field has no effect on data of this kind, or the kind is not known.
      DataError: the folder does not exist, or is not a data set of a known kind.
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
        where = "" if root.is_absolute() else f" (relative to {Path.cwd()})"
        raise DataError(f"The folder data.root={data.root} does not exist{where}: give the root of the data set.")
    quick = {name: source for name, source in kinds.items() if not source.tried_last}
    found = [layout for name, source in quick.items() if (layout := _recognised(name, source, root))]
    for name, source in kinds.items():
        if not found and source.tried_last and (layout := _recognised(name, source, root)):
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
    with errors_of(source, name):
        layout = source.recognise(root)
    return None if layout is None else dataclasses.replace(layout, kind=name)


def _not_found(data: DataConfig, root: Path) -> str:
    kinds = _folder_kinds(data)
    if data.dataset == "auto":
        there = ", ".join(sorted(child.name for child in root.iterdir())[:8]) or "nothing"
        below = [child for child in sorted(root.iterdir()) if child.is_dir()][:_LOOKED_INTO]
        near = [folder for folder in (*below, root.parent) if _is_data_set(folder)]
        hint = f" Try data.root={near[0]}, which is a data set." if near else ""
        wanted = dict.fromkeys(source.wanted for source in kinds.values())
        return (
            f"data.root={data.root} is not recognised as a data set (it holds {there}): it must have "
            f"{', or '.join(wanted)}.{hint}"
        )
    chosen = kinds[data.dataset]
    others = [name for name, source in kinds.items() if source is not chosen and _looks_like(source, root)]
    hint = f" It looks like {others[0]}: set data.dataset={others[0]}." if others else ""
    return f"data.dataset={data.dataset} needs {chosen.wanted}, which data.root={data.root} does not have.{hint}"


def _is_data_set(folder: Path) -> bool:
    return any(_looks_like(source, folder) for source in _folder_kinds(DataConfig()).values())


def _looks_like(source: FolderConfig, root: Path) -> bool:
    try:
        return source.recognise(root) is not None
    except DataError:
        return False
