"""Find the checkpoints of a run."""

from pathlib import Path

from detr_jax.checkpoints.errors import CheckpointError


def newest_checkpoint(path: Path) -> Path | None:
    """The newest complete checkpoint of a workdir, or of its folder ``checkpoints``. None if there is none."""
    return next(iter(checkpoints_of(path)), None)


def checkpoints_of(path: Path) -> list[Path]:
    """The complete checkpoints of a workdir, or of its folder ``checkpoints``, the newest one first."""
    for folder in (path / "checkpoints", path):
        steps = [child for child in folder.glob("*") if child.name.isdigit() and (child / "params").is_dir()]
        if steps:
            return sorted(steps, key=lambda child: -int(child.name))
    return []


def all_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest one first, also those that lack their parameters."""
    return sorted((child for child in folder.glob("*") if child.name.isdigit()), key=lambda child: -int(child.name))


def is_checkpoint(path: str | Path) -> bool:
    """Whether a path is a checkpoint, not the workdir of a run."""
    return (Path(path) / "params").is_dir()


def find_checkpoint(path: str | Path) -> Path:
    """The newest checkpoint of a workdir, or ``path`` itself if it is a checkpoint.

    ``WORKDIR/best`` is a link to the checkpoint with the best AP.

    Raises:
      CheckpointError: there is no checkpoint.
    """
    path = Path(path).absolute()
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file: give the workdir of a run or one of its checkpoints. Convert the weights of another "
            "project with detr-jax import-weights."
        )
    if not path.is_dir():
        raise CheckpointError(
            f"{path} does not exist: give the workdir of a run or one of its checkpoints. "
            "Get released weights with detr-jax import-weights, whose --list names them."
        )
    if is_checkpoint(path):
        return path.resolve() if path.is_symlink() else path
    if newest := newest_checkpoint(path):
        return newest
    raise CheckpointError(
        f"{path} holds no checkpoint: give the workdir of a run (with a folder checkpoints/) or one of its "
        "checkpoints, such as WORKDIR/checkpoints/1000."
    )
