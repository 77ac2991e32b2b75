"""Reads the files of other frameworks' checkpoints into numpy arrays, without running any code inside them.

``.safetensors`` needs no framework. PyTorch's own files are pickles. They are read only with
``torch.load(weights_only=True)``, which builds tensors and plain values and refuses everything else.
"""

import argparse
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from detr_jax.files import UnusableFileError
from detr_jax.json_files import JsonError, read_object
from detr_jax.memory import is_out_of_memory
from detr_jax.weights.sizes import check_arrays, check_file
from detr_jax.wording import first_line

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
"""Endings of the names of PyTorch's files."""
_SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
_INDEX = ".index.json"
_DIRECTORY_FILES = tuple(
    f"{name}{index}" for name in ("model.safetensors", "pytorch_model.bin") for index in ("", _INDEX)
)
_SHARD = re.compile(r"-\d+-of-\d+$")
_WRAPPERS = (  # entries of training checkpoints that hold the tensors; the EMA is taken only without plain weights
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "ema_state_dict",
    "model_ema",
    "ema",
    "module",
)
_IGNORED_CLASSES = (  # of losses and paths, which training checkpoints of mmdetection and Lightning hold
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.ndarray",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
)
_DICT_CLASSES = (  # of settings, which Lightning's checkpoints hold
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)


class _Nothing:
    """Replaces an ignored object of a pickle. It accepts any arguments and any state, and does nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class WeightsError(ValueError):
    """The weights cannot be read or do not fit. The message names the file and everything that is wrong."""


@dataclass
class TensorFile:
    """The content of a checkpoint file."""

    source: Path
    """The file, or the index of a sharded checkpoint."""
    tensors: dict[str, np.ndarray]
    """By name. Floating point numbers of any width are float32, integers keep their type."""
    config: dict[str, Any] | None = None
    """The config.json next to the file, as Hugging Face writes it."""
    extras: dict[str, Any] = field(default_factory=dict)
    """Other entries of a training checkpoint, such as ``args`` or ``meta``."""


def read_file(path: str | Path) -> TensorFile:
    """Reads a ``.safetensors`` or PyTorch file, the index of a sharded checkpoint, or a folder that holds one of these.

    Raises:
      WeightsError: the path does not exist, is damaged, is not a checkpoint, or is a pickle that holds more than
        tensors and plain values. Or PyTorch is needed and not installed.
    """
    path = Path(path)
    if path.is_dir():
        path = _file_in(path)
    if not path.exists():
        raise WeightsError(f"{path} does not exist: give a checkpoint file or a directory that holds one.")
    config = read_json(path.with_name("config.json"))
    if path.name.endswith(_INDEX):
        return TensorFile(path, _read_shards(path), config)
    if _SHARD.search(path.stem):
        raise WeightsError(f"{path} is one of several files of a checkpoint: give their folder, {path.parent}.")
    tensors, extras = _unwrapped(_read_one(path), path)
    return TensorFile(path, tensors, config, extras)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no file.

    Raises:
      WeightsError: the file holds something else.
    """
    if not path.exists():
        return None
    try:
        return read_object(path)
    except (OSError, JsonError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}).") from None


def _file_in(folder: Path) -> Path:
    for name in _DIRECTORY_FILES:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES)
    hint = f" Give one of its files: {', '.join(others[:5])}{' ...' if len(others) > 5 else ''}." if others else ""
    raise WeightsError(
        f"{folder} holds no checkpoint: a directory must have {' or '.join(_DIRECTORY_FILES[::2])}, or their "
        f"{_INDEX}.{hint}"
    )


def _read_one(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise WeightsError(f"{path} is of an unknown kind: the name of a checkpoint must end in {', '.join(_SUFFIXES)}.")


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """The tensors of a sharded checkpoint, each from the file that the index names."""
    shard_of = (read_json(index) or {}).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise WeightsError(f"{index} is not the index of a checkpoint: it has no weight_map.")
    shards: dict[Any, list[str]] = {}
    for name, shard in shard_of.items():
        shards.setdefault(shard, []).append(name)
    suffix = Path(index.name.removesuffix(_INDEX)).suffix
    for shard in shards:
        if not _is_inside(shard) or Path(shard).suffix != suffix:
            raise WeightsError(
                f"{index} is refused: it points to {shard!r}, which is not a {suffix} file in its folder."
            )
    if missing := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise WeightsError(
            f"{index.parent} lacks {len(missing)} of the {len(shards)} files of its checkpoint: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Download them again."
        )
    tensors: dict[str, np.ndarray] = {}
    for shard, names in shards.items():
        found, _ = _unwrapped(_read_one(index.parent / shard), index.parent / shard)
        if absent := [name for name in names if name not in found]:
            raise WeightsError(
                f"{index.parent / shard} lacks {len(absent)} tensors that {index.name} lists, such as {absent[0]}: "
                "download it again."
            )
        if strays := [name for name in found if shard_of.get(name) != shard]:
            raise WeightsError(
                f"{index.parent / shard} holds {len(strays)} tensors that {index.name} does not expect there, such as "
                f"{strays[0]}: the files belong to different checkpoints. Download them again."
            )
        tensors |= found
    return tensors


def _is_inside(shard: Any) -> bool:
    """Whether a name leads to a file in or below the folder of its index."""
    if not isinstance(shard, str) or not shard or "\\" in shard or ":" in shard:
        return False
    return not PurePosixPath(shard).is_absolute() and ".." not in PurePosixPath(shard).parts


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        check_file(path)
        return load_file(path)
    except UnusableFileError as error:
        raise WeightsError(f"{path} is refused ({error}).") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if is_out_of_memory(error):
            raise
        raise WeightsError(f"{path} is damaged or not a safetensors file ({error}): download it again.") from None


def _read_torch(path: Path) -> Any:
    torch = _import_torch(path)
    try:
        check_file(path)
        # training checkpoints hold more than tensors: the original's hold the command line, a Namespace
        allowed = [
            argparse.Namespace,
            *((_Nothing, name) for name in _IGNORED_CLASSES),
            *((dict, name) for name in _DICT_CLASSES),
        ]
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
        check_arrays(path, content)
        return content
    except UnusableFileError as error:
        raise WeightsError(f"{path} is refused ({error}).") from None
    except pickle.UnpicklingError as error:
        wanted = re.findall(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise WeightsError(
                f"{path} is refused: it is a pickle that asks for {wanted[0]}, and loading that could run any code. "
                "Only tensors and plain values are read. Save only its state_dict(), or convert it to safetensors."
            ) from None
        raise WeightsError(f"{path} is damaged or not a PyTorch checkpoint: download it again.") from None
    except Exception as error:  # a truncated archive can raise nearly any exception
        if is_out_of_memory(error):
            raise
        raise WeightsError(
            f"{path} is damaged or not a PyTorch checkpoint ({first_line(error)}): download it again."
        ) from None


def _import_torch(path: Path) -> ModuleType:
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path} is a PyTorch file, and PyTorch is not installed: pip install 'detr_jax[torch]', or convert the "
            "file to safetensors on a machine that has PyTorch."
        ) from None
    return torch


def _unwrapped(content: Any, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a file, and the other entries of a training checkpoint."""
    extras: dict[str, Any] = {}
    opened: set[int] = set()
    while (wrapper := _wrapper_of(content)) and id(content) not in opened:  # a pickle may hold itself
        opened.add(id(content))
        extras |= {name: value for name, value in content.items() if name != wrapper}
        content = content[wrapper]
    tensors = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        array = _as_array(value)
        if isinstance(name, str) and array is not None:
            tensors[name] = array
    if not tensors:
        raise WeightsError(f"{path} is not a checkpoint of a model: it holds no named tensors.")
    return tensors, extras


def _wrapper_of(content: Any) -> str | None:
    """The entry of a training checkpoint that holds the tensors, or None if the content itself does."""
    if not isinstance(content, Mapping):
        return None
    return next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)


def _as_array(value: Any) -> np.ndarray | None:
    """A numpy or PyTorch tensor as a numpy array, floats as float32. None for anything else."""
    if isinstance(value, np.ndarray):
        is_integer = np.issubdtype(value.dtype, np.integer) or value.dtype == bool
        return value if is_integer else value.astype(np.float32)
    if not hasattr(value, "detach") or value.is_meta or value.is_quantized or str(value.layout) != "torch.strided":
        return None
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()
