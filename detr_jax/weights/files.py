"""Files of foreign checkpoints as plain numpy arrays, without ever running what is inside them.

``.safetensors`` needs nothing but numpy. PyTorch's own files are pickles; they are read with
``torch.load(weights_only=True)`` alone, which builds tensors and plain values and refuses everything else.
"""

import argparse
import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from detr_jax.memory import is_out_of_memory

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_DIRECTORY_FILES = ("model.safetensors", "pytorch_model.bin")
_WRAPPERS = ("model", "state_dict")  # what training checkpoints call the tensors
_LOG_BOOKS = (  # what mmdetection's training checkpoints need to rebuild their record of losses
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    "numpy.ndarray",
    "numpy.dtype",
)


class _Nothing:
    """Stands in a pickle for something that is not wanted: it can be made and filled, and does nothing."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit; the message names the file and everything that is wrong."""


@dataclass
class TensorFile:
    """The content of a checkpoint file."""

    source: Path
    tensors: dict[str, np.ndarray]
    """By name; floating point of any width as float32, integers as they are."""
    config: dict[str, Any] | None = None
    """The config.json beside the tensors, as Hugging Face writes it."""
    metadata: dict[str, Any] = field(default_factory=dict)
    """What else stood beside the tensors in a training checkpoint, such as ``args`` or ``meta``."""


def read_file(path: str | Path) -> TensorFile:
    """Reads a ``.safetensors`` or PyTorch file, or a directory as Hugging Face writes it.

    Raises:
      WeightsError: the path does not exist, is damaged, is no checkpoint, or is a pickle that holds more than
        tensors and plain values; or PyTorch is needed and not installed.
    """
    path = Path(path)
    if path.is_dir():
        names = [name for name in _DIRECTORY_FILES if (path / name).is_file()]
        if not names:
            raise WeightsError(f"{path} holds no checkpoint: a directory must have {' or '.join(_DIRECTORY_FILES)}.")
        path = path / names[0]
    if not path.is_file():
        raise WeightsError(f"{path} does not exist: give a checkpoint file or a directory that holds one.")
    if path.suffix == ".safetensors":
        content: Any = _read_safetensors(path)
    elif path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path)
    else:
        known = ", ".join((".safetensors", *TORCH_SUFFIXES))
        raise WeightsError(f"{path} is of an unknown kind: the name of a checkpoint must end in {known}.")
    tensors, metadata = _unwrapped(content, path)
    return TensorFile(path, tensors, _read_config(path.with_name("config.json")), metadata)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        raise WeightsError(f"{path} is damaged or no safetensors file ({error}): get it again.") from None


def _read_torch(path: Path) -> Any:
    torch = _import_torch(path)
    try:
        # training checkpoints hold more than tensors: the original's its command line, a Namespace of plain values
        allowed = [argparse.Namespace, *((_Nothing, name) for name in _LOG_BOOKS)]
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.findall(r"GLOBAL (\S+)", str(error))
        if wanted:
            raise WeightsError(
                f"{path} is refused: it is a pickle that asks for {wanted[0]}, and loading that could run any code; "
                "only tensors and plain values are read. Save its state_dict() alone, or convert it to safetensors."
            ) from None
        raise WeightsError(f"{path} is damaged or no PyTorch checkpoint: get it again.") from None
    except Exception as error:  # a truncated archive can end in nearly any exception of the unpickler
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{path} is damaged or no PyTorch checkpoint ({reason}): get it again.") from None


def _import_torch(path: Path) -> ModuleType:
    try:
        import torch
    except ImportError:
        raise WeightsError(
            f"{path} is a PyTorch file, and PyTorch is not installed: pip install 'detr_jax[torch]', or convert the "
            "file to safetensors where PyTorch is."
        ) from None
    return torch


def _unwrapped(content: Any, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a file and what stood beside them."""
    metadata: dict[str, Any] = {}
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            metadata = {name: value for name, value in content.items() if name != wrapper}
            content = content[wrapper]
    tensors = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        array = _as_array(value)
        if isinstance(name, str) and array is not None:
            tensors[name] = array
    if not tensors:
        raise WeightsError(f"{path} is no checkpoint of a model: it holds no tensors by name.")
    return tensors, metadata


def _as_array(value: Any) -> np.ndarray | None:
    """A tensor of numpy or PyTorch as numpy, floats as float32; None for anything else."""
    if isinstance(value, np.ndarray):
        is_integer = np.issubdtype(value.dtype, np.integer) or value.dtype == bool
        return value if is_integer else value.astype(np.float32)
    if not hasattr(value, "detach"):
        return None
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()


def _read_config(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise WeightsError(f"{path} cannot be read as JSON ({error}).") from None
    return config if isinstance(config, dict) else None
