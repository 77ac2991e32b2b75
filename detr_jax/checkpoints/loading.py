"""Load what inference needs from a checkpoint: the model, its configuration, and what its labels mean."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from detr_jax.checkpoints import sizes
from detr_jax.checkpoints.errors import CheckpointError, DamagedCheckpointError, damaged_error
from detr_jax.checkpoints.finding import checkpoints_of, find_checkpoint, is_checkpoint
from detr_jax.checkpoints.parts import has_part, load_part, size_errors, texts_in
from detr_jax.config import Config, ConfigError, Precision, check_model, from_json
from detr_jax.data.labels import TrainedLabels
from detr_jax.json_files import parse_object
from detr_jax.memory import arrays_text, fitting
from detr_jax.models.detector import abstract_model
from detr_jax.models.detr import DETR
from detr_jax.printing import printable

T = TypeVar("T")

_log = logging.getLogger("detr_jax")


def load_config(path: str | Path) -> Config:
    """The configuration inside a checkpoint.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return read_newest(path, _config_of)


def _config_of(checkpoint: Path) -> Config:
    try:
        [text] = texts_in(checkpoint, "config", "json")
        config = from_json(str(text))
        check_model(config.model)
        return config
    except ConfigError as error:
        raise CheckpointError(f"The configuration inside {checkpoint} cannot be used: {error}") from None


def read_newest(path: str | Path, read: Callable[[Path], T]) -> T:
    """Reads a checkpoint, or the newest one of a workdir.

    A run that trains at the same time may delete a checkpoint while it is read. Then the newest one is read instead.
    If a checkpoint of a workdir is damaged, a warning is logged, and the one before it is read.

    Args:
      path: a checkpoint, or a workdir.
      read: reads something of the checkpoint that it is given. It may be called again with another one.

    Returns:
      The result of ``read``.

    Raises:
      CheckpointError: there is no checkpoint, or ``read`` raised it.
    """
    while True:
        newest = find_checkpoint(path)
        earlier = [] if is_checkpoint(path) else [one for one in checkpoints_of(Path(path)) if one != newest]
        try:
            return _first_sound([newest, *earlier], read)
        except CheckpointError:
            if find_checkpoint(path) == newest:
                raise


def _first_sound(checkpoints: Sequence[Path], read: Callable[[Path], T]) -> T:
    """Reads the first of some checkpoints that is not damaged; raises the error of the first if all are."""
    damaged: list[DamagedCheckpointError] = []
    for checkpoint in checkpoints:
        try:
            found = read(checkpoint)
        except DamagedCheckpointError as error:
            damaged.append(error)
            continue
        for why in damaged if checkpoints[0].is_dir() else ():  # not if a run has deleted it meanwhile
            _log.warning("%s %s is used instead.", printable(why), printable(checkpoint))
        return found
    raise damaged[0]


def load_class_names(path: str | Path) -> dict[int, str]:
    """The names of the labels inside a checkpoint, by label; empty if it holds none.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return dict(load_labels(path).names)


def load_category_ids(path: str | Path) -> dict[int, int]:
    """The category ids of the data inside a checkpoint, by label; empty if the labels are the ids.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return dict(load_labels(path).category_ids)


def load_stuff_labels(path: str | Path) -> frozenset[int]:
    """The labels inside a checkpoint whose classes are no things, such as sky; empty if it holds none.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
    """
    return load_labels(path).stuff


def load_labels(path: str | Path) -> TrainedLabels:
    """What the labels of a checkpoint mean; raises the errors of `load_class_names`."""
    return read_newest(path, _labels_of)


def labels_of_run(workdir: Path) -> TrainedLabels | None:
    """The names and category ids of the labels of a run's newest checkpoint; None if it cannot be read."""
    try:
        return load_labels(workdir)
    except CheckpointError:
        return None


def _labels_of(checkpoint: Path) -> TrainedLabels:
    if not has_part(checkpoint, "classes"):
        return TrainedLabels({}, {})
    names, ids, stuff = texts_in(checkpoint, "classes", "json", "ids", "stuff")
    return TrainedLabels(
        names=_by_label(checkpoint, names, str),
        category_ids=_by_label(checkpoint, ids, int),
        stuff=frozenset(_by_label(checkpoint, stuff, bool)),
    )


def _by_label(checkpoint: Path, text: str | None, kind: type[T]) -> dict[int, T]:
    """Something of a kind for each label, from a JSON text; empty if there is no text.

    Raises:
      DamagedCheckpointError: the text holds something else.
    """
    if text is None:
        return {}
    try:
        found = {int(label): value for label, value in parse_object(text).items()}
    except ValueError as error:
        raise damaged_error(checkpoint, f"its 'classes' cannot be read ({error})") from None
    if any(type(value) is not kind for value in found.values()):
        raise damaged_error(checkpoint, f"its 'classes' hold something else than a {kind.__name__} per label")
    return found


def load_model(path: str | Path, *, ema: bool = True, dtype: str | None = None) -> tuple[DETR, Config]:
    """A trained model and its configuration.

    Args:
      path: a checkpoint, or a workdir, whose newest checkpoint is used. ``WORKDIR/best`` is its best checkpoint.
      ema: use the EMA of the parameters if the checkpoint has it.
      dtype: compute type, "float32" or "bfloat16", instead of the one that the model was trained with.

    Raises:
      CheckpointError: there is no checkpoint, or it is damaged.
      OutOfMemoryError: the model does not fit into memory.
    """
    return read_newest(path, lambda checkpoint: _model_of(checkpoint, ema, dtype))


def _model_of(checkpoint: Path, ema: bool, dtype: str | None) -> tuple[DETR, Config]:
    config = _config_of(checkpoint)
    if dtype is not None:
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=Precision(dtype)))
    part = "ema" if ema and has_part(checkpoint, "ema") else "params"
    with size_errors(checkpoint):
        sizes.check_depth(checkpoint, config.model)
        graph, abstract = abstract_model(config.model)
        sizes.check_model(checkpoint, abstract)
    with fitting(f"The model in {checkpoint} ({arrays_text(abstract)})", "Use a machine with more memory."):
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), abstract)
        # on the device: numpy arrays would be sent there at every call
        return nnx.merge(graph, jax.tree.map(jnp.asarray, load_part(checkpoint, part, target))), config
