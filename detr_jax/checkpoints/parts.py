"""Read the parts of a checkpoint, compare them with their checksums, and check their sizes first."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from detr_jax.checkpoints import checksums, sizes
from detr_jax.checkpoints.errors import CheckpointError, damaged_error
from detr_jax.files import UnusableFileError
from detr_jax.json_files import parse_object
from detr_jax.memory import is_out_of_memory
from detr_jax.wording import first_line

Tree = Any
"""A pure tree of arrays."""

CHECKSUMS = "checksums"
"""The part with the checksums of the others."""


def load_part(checkpoint: Path, part: str, target: Tree = None) -> Tree:
    """Reads a part of a checkpoint, with the shapes of ``target`` if it is given.

    Raises:
      CheckpointError: the part is missing or damaged.
    """
    found = read_part(checkpoint, part, target)
    verify_part(checkpoint, part, found, expected_checksums(checkpoint))
    return found


def read_part(checkpoint: Path, part: str, target: Tree = None) -> Tree:
    """As `load_part`, without comparing checksums."""
    with size_errors(checkpoint):
        sizes.check_stored(checkpoint)
    try:
        return ocp.load_checkpointables(checkpoint, {part: target})[part]
    except Exception as error:  # Orbax and its libraries raise errors of many types
        if is_out_of_memory(error):
            raise
        reason = first_line(error.__cause__ or error)
        raise damaged_error(checkpoint, f"its {part!r} cannot be read ({reason})") from error


def restore_parts(checkpoint: Path, targets: dict[str, Tree]) -> dict[str, Tree]:
    """Reads the parts named in ``targets``, with the dtypes and shardings of the trees there. Nothing is changed.

    Raises:
      DamagedCheckpointError: a part is missing or damaged.
      CheckpointError: the checkpoint does not have these parts with these shapes.
    """
    with size_errors(checkpoint):
        sizes.check_stored(checkpoint)
    try:
        found: dict[str, Tree] = ocp.load_checkpointables(checkpoint, targets)
        expected = expected_checksums(checkpoint)
        for name, tree in found.items():
            verify_part(checkpoint, name, tree, expected)
        return found
    except CheckpointError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        check_sound(checkpoint)
        raise CheckpointError(
            f"Checkpoint {checkpoint.name} in {checkpoint.parent} does not fit this configuration "
            f"({first_line(error.__cause__ or error)}): resume with the configuration of the run, or choose another "
            "--workdir."
        ) from error


def texts_in(checkpoint: Path, part: str, *keys: str) -> list[str | None]:
    """Texts of a part by their keys. None for those that the part does not have.

    Raises:
      CheckpointError: the part is missing or damaged, or holds something else than texts.
    """
    found = load_part(checkpoint, part)
    texts = [found.get(key) for key in keys] if isinstance(found, Mapping) else [found]
    if not all(isinstance(text, str | None) for text in texts):
        raise damaged_error(checkpoint, f"its {part!r} holds something else than texts")
    return texts


@contextlib.contextmanager
def size_errors(checkpoint: Path) -> Iterator[None]:
    """The errors of `detr_jax.checkpoints.sizes` as a `CheckpointError`."""
    try:
        yield
    except UnusableFileError as error:
        raise CheckpointError(f"The checkpoint {checkpoint} is refused: {error}.") from None
    except OSError as error:  # for example if a run deletes it meanwhile
        raise damaged_error(checkpoint, f"its files cannot be read ({error.strerror or error})") from error


def has_part(checkpoint: Path, part: str) -> bool:
    """Whether a checkpoint has a part.

    Raises:
      DamagedCheckpointError: it should have the part, and it is missing.
    """
    if (checkpoint / part).is_dir():
        return True
    if part in (expected_checksums(checkpoint) or ()):
        raise damaged_error(checkpoint, f"its {part!r} is missing")
    return False


def check_sound(checkpoint: Path) -> None:
    """Read every part of a checkpoint and compare it with its checksums.

    Raises:
      DamagedCheckpointError: a part is missing or damaged, or the checkpoint is of another step than its folder says.
    """
    expected = expected_checksums(checkpoint)
    for part in expected or ("params", "optimizer", "progress", "config"):
        verify_part(checkpoint, part, read_part(checkpoint, part), expected)
    check_step(checkpoint)


def check_step(checkpoint: Path) -> None:
    """Check that a checkpoint is of the step that its folder is named by.

    Raises:
      DamagedCheckpointError: it is of another step, or does not say of which.
    """
    try:
        step = int(load_part(checkpoint, "progress")["step"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise damaged_error(checkpoint, "its 'progress' holds no step") from None
    if checkpoint.name.isdigit() and step != int(checkpoint.name):
        raise damaged_error(checkpoint, f"it is of step {step}")


def expected_checksums(checkpoint: Path) -> dict[str, checksums.Checksums] | None:
    """The checksums of each part. None for checkpoints of versions that had none.

    Raises:
      DamagedCheckpointError: the checksums are missing or damaged.
    """
    if not (checkpoint / CHECKSUMS).is_dir():
        config = read_part(checkpoint, "config") if (checkpoint / "config").is_dir() else {}
        if CHECKSUMS in config:
            raise damaged_error(checkpoint, "its 'checksums' are missing")
        return None
    stored = read_part(checkpoint, CHECKSUMS)
    try:
        text = str(stored["json"])
        if str(checksums.of_text(text)) != str(stored["of_json"]):
            raise ValueError("they differ from their own checksum")
        expected: dict[str, checksums.Checksums] = parse_object(text)
        if not all(isinstance(sums, dict) for sums in expected.values()):
            raise ValueError("a part has no list of them")
    except (KeyError, TypeError, ValueError) as error:
        reason = first_line(error)
        raise damaged_error(checkpoint, f"its 'checksums' cannot be read ({reason})") from error
    return expected


def verify_part(checkpoint: Path, part: str, tree: Tree, expected: dict[str, checksums.Checksums] | None) -> None:
    """Compare a part that was read with its checksums, which are those of `expected_checksums`.

    Raises:
      DamagedCheckpointError: they differ.
    """
    if expected is None:
        return
    if part not in expected:
        raise damaged_error(checkpoint, f"its checksums lack {part!r}")
    if wrong := checksums.differing(tree, expected[part]):
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise damaged_error(checkpoint, f"{part}/{wrong[0]}{more} differs from its checksum")
