"""The batch of a step with values that are not finite, in ``WORKDIR/nonfinite``."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from detr_jax.array_files import read_arrays, write_arrays
from detr_jax.data.batching import create_loader
from detr_jax.data.source import DataError
from detr_jax.structures import BatchInputs, Targets
from detr_jax.training.error import TrainingError
from detr_jax.training.resolve import Resolved

FOLDER = "nonfinite"


def write_failed_batch(workdir: Path, step: int, resolved: Resolved, rows: Sequence[int]) -> str:
    """Writes the batch of a step to ``WORKDIR/nonfinite/STEP.npz``.

    The batch is loaded again, because its arrays on the devices are gone. It depends on the seed and the step only.
    Each process of a distributed run writes its rows.

    Returns:
      A sentence with the command that replays the step, or the reason why the file could not be written.
    """
    config = resolved.config
    name = f"{step}.npz" if jax.process_count() == 1 else f"{step}-process{jax.process_index()}.npz"
    path = workdir / FOLDER / name
    try:
        loader = create_loader(resolved.plan, resolved.train_source, config.training.batch_size, config.data, rows=rows)
        batch = loader(resolved.plan[step - 1])
        targets = batch.inputs.targets
        arrays = {
            "rows": np.asarray(rows, np.int64),
            "images": batch.inputs.images,
            "valid_sizes": batch.inputs.valid_sizes,
            "boxes": targets.boxes,
            "labels": targets.labels,
            "count": targets.count,
            "image_ids": batch.info.image_ids,
            **({} if targets.masks is None else {"masks": targets.masks}),
        }
        write_arrays(path, arrays)
    except (OSError, DataError) as error:
        return f"The batch could not be written for detr-jax replay: {error}"
    return f"Look at the step with: detr-jax replay {shlex.quote(str(path))}"


def step_of(path: Path) -> int:
    """The step of a file of `write_failed_batch`.

    Raises:
      TrainingError: the name is not the one of such a file.
    """
    found = re.fullmatch(r"([1-9][0-9]*)(-process[0-9]+)?\.npz", path.name)
    if found is None or path.absolute().parent.name != FOLDER:
        raise TrainingError(f"{path} is no batch of a run: give a file WORKDIR/{FOLDER}/STEP.npz.")
    return int(found[1])


def read_failed_batch(path: Path) -> tuple[BatchInputs, list[int]]:
    """The batch of a file of `write_failed_batch`. The rows of all processes are put together.

    Returns:
      The batch, and the id of the image of each row; -1 for a row without an image.

    Raises:
      TrainingError: the file does not exist, or is not such a file.
    """
    stem = str(step_of(path))
    files = [path] if path.stem == stem else sorted(path.parent.glob(f"{stem}-process*.npz"))
    parts = [_read(file) for file in files]
    try:
        order = np.argsort(np.concatenate([part["rows"] for part in parts]))
        if not np.array_equal(np.sort(np.concatenate([part["rows"] for part in parts])), np.arange(len(order))):
            raise TrainingError(f"{path} has not all rows of the batch: put the files of all processes beside it.")
        whole = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
        targets = Targets(whole["boxes"], whole["labels"], whole["count"], whole.get("masks"))
        return BatchInputs(whole["images"], whole["valid_sizes"], targets), whole["image_ids"].tolist()
    except (KeyError, ValueError) as error:
        raise TrainingError(f"{path} is no batch of a run ({error}).") from None


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        return read_arrays(file)
    except FileNotFoundError:
        raise TrainingError(f"{file} does not exist.") from None
    except Exception as error:  # zip, zlib and numpy have many
        raise TrainingError(f"{file} cannot be read as a batch of a run ({error}).") from None
