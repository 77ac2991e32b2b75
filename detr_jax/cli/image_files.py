"""The image files that the arguments of a command name."""

import glob
from collections.abc import Sequence
from pathlib import Path

from detr_jax.data.image_folders import image_suffixes, images_in, list_folder, suffix_of
from detr_jax.data.source import DataError


def find_images(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Finds the files that paths, folders and patterns name, each once and in order.

    Returns:
      The files, and a message for each path, folder or pattern that names none.
    """
    files: dict[Path, None] = {}
    faults = []
    for name in given:
        try:
            files |= dict.fromkeys(_files_of(name))
        except OSError as error:
            faults.append(f"{name} cannot be read ({error.strerror}).")
        except DataError as error:
            faults.append(str(error))
    return list(files), faults


def _files_of(name: str) -> list[Path]:
    """The files that a path, folder or pattern names. A DataError says that it names none."""
    path = Path(name)
    if path.is_dir():
        found = [child for child in sorted(path.iterdir()) if child.is_file() and _is_image(child)]
        if not found:
            folder = list_folder(path)
            found = [path / name for name in images_in(folder)]
        absent = f"The folder {path} and its folders hold no image of a supported format."
    elif path.exists():
        return [path]
    else:
        matching = [match for match in map(Path, sorted(glob.glob(name, recursive=True))) if match.is_file()]
        found = [match for match in matching if _is_image(match)] or matching
        absent = f"No file matches {name}." if glob.has_magic(name) else f"{path} does not exist."
    if not found:
        raise DataError(absent)
    return found


def _is_image(path: Path) -> bool:
    """Whether a file looks like an image. Files such as ``._photo.jpg``, which macOS writes on other disks, do not."""
    return suffix_of(path.name) in image_suffixes() and not path.name.startswith("._")
