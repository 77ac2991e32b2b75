"""The error of a training run that cannot continue."""


class TrainingError(RuntimeError):
    """A run that cannot continue. The message says at which step, why, and what to try."""
