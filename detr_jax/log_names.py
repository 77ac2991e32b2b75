"""Names in the log of a training, such as ``loss_giou``, and ``loss_giou_0`` for the same term of other predictions."""

import re
from collections.abc import Collection

TRAINING_NUMBERS = (
    *("loss", "gradient_norm", "learning_rate", "backbone_learning_rate", "images_per_s", "compile_seconds"),
    *("programs", "skipped_images"),
)
"""What a training logs in addition to the terms of the loss."""

_OTHER = re.compile(r"\d+|enc|dn")


def split_term(name: str, names: Collection[str]) -> tuple[str, str]:
    """Split the name of a loss term into the term and the predictions that it is computed from.

    Args:
      name: for example ``loss_giou``, or ``loss_giou_0`` for decoder layer 0, ``loss_giou_enc`` for proposals and
        ``loss_giou_dn`` for denoising queries.
      names: all names in the log. ``loss_giou_0`` belongs to ``loss_giou`` only if ``loss_giou`` is among them.

    Returns:
      The name of the term, and ``0``, ``enc`` or ``dn``, or an empty text for the last layer.
    """
    words = name.split("_")
    for end in range(1, len(words)):
        term, rest = "_".join(words[:end]), words[end:]
        if term in names and all(map(_OTHER.fullmatch, rest)):
            return term, "_".join(rest)
    return name, ""


def last_layer_terms(names: Collection[str]) -> list[str]:
    """The loss terms of the last decoder layer among the names of a log, in their order."""
    return [name for name in names if name.startswith("loss_") and not split_term(name, names)[1]]
