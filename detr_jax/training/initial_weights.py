"""Pretrained weights that a run starts from (``training.init_from``): they are read and put into the model."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from detr_jax.config import Config
from detr_jax.training.state import PartitionedModel, abstract_model
from detr_jax.weights import ImportedWeights, merge_pretrained, outcome_table, read_pretrained

if TYPE_CHECKING:
    from detr_jax.training.resolve import Resolved


def read_initial_weights(config: Config) -> ImportedWeights:
    """Reads the weights of ``training.init_from``.

    Raises:
      WeightsError: they cannot be read.
    """
    model = config.model
    return read_pretrained(
        config.training.init_from,
        dilation=getattr(model.backbone, "dilation", False),
        mask_padding=model.mask_padding,
        num_heads=None if config.training.follow_checkpoint else getattr(model, "num_heads", None),
    )


def initial_model(resolved: "Resolved", *, is_new: bool) -> tuple[PartitionedModel, str]:
    """The abstract model of a run, with the weights of ``training.init_from`` if the run is new.

    Returns:
      The model, and a table of what was loaded, for the log; empty if nothing was.

    Raises:
      WeightsError: the weights cannot be read, or belong to another architecture.
    """
    config = resolved.config
    model = abstract_model(config)
    if not config.training.init_from or not is_new:
        return model, ""
    weights = resolved.weights or read_initial_weights(config)
    return load_initial_weights(model, weights, config, resolved.train_source.categories)


def load_initial_weights(
    model: PartitionedModel, weights: ImportedWeights, config: Config, class_names: dict[int, str]
) -> tuple[PartitionedModel, str]:
    """Puts imported weights into a model.

    Args:
      model: parameters that are not imported stay as they are, abstract ones included.
      weights: the imported weights.
      config: the configuration of the run.
      class_names: the names of the data's classes by label. If the class head fits but its checkpoint has other
        names, a note reports it.

    Returns:
      The model, and a table of what was loaded, for the log.

    Raises:
      WeightsError: the weights belong to another architecture.
    """
    tree, outcomes = merge_pretrained(model.full_tree, weights, config.model)
    notes = list(weights.notes)
    if weights.config is not None and weights.config.num_classes == config.model.num_classes:
        trained = {label: weights.class_names.get(label, name) for label, name in class_names.items()}
        if other := [
            f"{label} {trained[label]} -> {name}" for label, name in class_names.items() if trained[label] != name
        ]:
            notes.append(f"The class head was trained for other classes, and starts from them: {', '.join(other)}.")
    title = f"starting from {config.training.init_from} ({weights.kind}):"
    return model.with_tree(jax.tree.map(_on_device, tree)), "\n".join([title, outcome_table(outcomes), *notes])


def _on_device(leaf: np.ndarray | jax.Array | jax.ShapeDtypeStruct) -> jax.Array | jax.ShapeDtypeStruct:
    return leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jnp.asarray(leaf)
