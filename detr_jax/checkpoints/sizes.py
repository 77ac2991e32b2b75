"""Check the sizes that a checkpoint declares against its size on the disk, before memory is allocated for them.

The configuration in a checkpoint can describe a model of any size, and the header of a stored array can have any shape.
"""

import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from detr_jax.config import DetectorConfig
from detr_jax.files import UnusableFileError, check_unpacked, folder_size

_UNKNOWN = 2**31


def check_stored(checkpoint: Path) -> int:
    """Checks the shapes of the stored arrays. Returns their number, or a large number if they cannot be read.

    Raises:
      UnusableFileError: they need much more memory than the size of the checkpoint explains (`check_unpacked`).
    """
    try:
        return _check_shapes(checkpoint, checkpoint.stat().st_mtime_ns)
    except UnusableFileError:
        raise
    except Exception:  # Orbax raises errors of many types, and reports them again when a part is read
        return _UNKNOWN


def check_depth(checkpoint: Path, model: DetectorConfig) -> None:
    """Checks that a checkpoint has an array for each layer of a model, because layers take time to build.

    Classes from outside of the package, which may use the fields in another way, are not checked.

    Raises:
      UnusableFileError: it has not; or as for `check_stored`.
    """
    stored = check_stored(checkpoint)
    is_own = type(model).build.__module__.partition(".")[0] == "detr_jax"
    if is_own and model.least_arrays > stored:
        raise UnusableFileError(
            f"its configuration describes a model of at least {model.least_arrays} arrays, and it holds {stored}"
        )


def check_model(checkpoint: Path, abstract: Any) -> None:
    """Checks the size of a model, as a tree of abstract arrays.

    Raises:
      UnusableFileError: it needs much more memory than the size of the checkpoint explains.
    """
    sizes = [math.prod(one.shape) * one.dtype.itemsize for one in jax.tree.leaves(abstract)]
    check_unpacked(folder_size(checkpoint), sizes, "the parameters of its configuration")


@functools.lru_cache(maxsize=8)
def _check_shapes(checkpoint: Path, changed: int) -> int:
    """As `check_stored`. ``changed`` is when the checkpoint was written, so that each one is checked once."""
    stored = ocp.checkpointables_metadata(checkpoint).metadata
    leaves = jax.tree.leaves(stored, is_leaf=lambda one: hasattr(one, "shape") and hasattr(one, "dtype"))
    sizes = [math.prod(one.shape) * np.dtype(one.dtype).itemsize for one in leaves if getattr(one, "shape", None)]
    check_unpacked(folder_size(checkpoint), sizes, "its arrays")
    return len(leaves)
