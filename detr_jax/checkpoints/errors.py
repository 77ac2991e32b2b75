"""The errors of checkpoints."""

from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint cannot be read or written; the message names the folder and what would be right."""


class DamagedCheckpointError(CheckpointError):
    """A part of a checkpoint is missing or damaged; the message names it."""


class CheckpointWriteError(CheckpointError):
    """A checkpoint could not be written, for example because the disk is full."""


def damaged_error(checkpoint: Path, what: str) -> DamagedCheckpointError:
    """The error for a checkpoint in which something is wrong, such as "its 'params' are missing"."""
    return DamagedCheckpointError(
        f"The checkpoint {checkpoint} is damaged: {what}. Use another checkpoint of the run, or a copy."
    )
