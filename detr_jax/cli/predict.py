"""Using a model."""

import glob
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image

from detr_jax.checkpoints import find_checkpoint
from detr_jax.cli.output import STOPPED, counted, fail, write_text
from detr_jax.data import DataError
from detr_jax.data.images import IMAGE_SUFFIXES
from detr_jax.data.source import Faults
from detr_jax.host_memory import keep_freed_memory
from detr_jax.inference import Detector
from detr_jax.memory import OutOfMemoryError, fitting
from detr_jax.results import ImageDetections
from detr_jax.visualization import LabelledBoxes, draw_boxes

_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
_PICTURES = (".jpg", ".jpeg", ".png")  # formats that a picture keeps; others become .png
_PREDICTIONS = "predictions.json"
_LEAST_SIDE = 320  # pixels of the longer side of a picture; smaller images are enlarged, or captions would hide them


@click.command("predict", short_help="Find objects in images.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="predictions",
    show_default=True,
    help="Folder for predictions.json and the pictures.",
)
@click.option(
    "--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Lowest score of a detection."
)
@click.option("--batch-size", type=click.IntRange(1), help="Images predicted together; default: 8, on a CPU 1.")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Draw what was found in each image.")
@click.option("--ema/--no-ema", default=True, show_default=True, help="Take the moving average where there is one.")
def predict(
    checkpoint: Path,
    images: tuple[str, ...],
    out: Path,
    threshold: float,
    batch_size: int | None,
    pictures: bool,
    ema: bool,
) -> None:
    """Find objects in images, and write them as JSON and as pictures.

    CHECKPOINT is the workdir of a run, of which the newest checkpoint is taken, or a checkpoint. IMAGE is a file, a
    folder (the images in it, not in its folders) or a quoted pattern such as "photos/**/*.jpg".

    predictions.json in --out lists each image with its file, picture, width, height and detections: box [x0, y0, x1,
    y1] in pixels, score, label and name. Small images are enlarged in their pictures, and no other file in --out is
    written over. Photos are turned as their EXIF data say. What cannot be read is named, the
    other images are still done, and the exit code is 1. Ctrl-C writes what has been found so far.

    \b
    Examples:
      detr-jax predict runs/shapes photo.jpg
      detr-jax predict detr-r50 photos --out found --threshold 0.7
    """
    checkpoint = find_checkpoint(checkpoint)
    files, faults = find_images(images)
    if not files:
        for sentence in faults:
            click.echo(sentence, err=True)
        fail("There is no image to look at.")
    names = _picture_names(files, _others(out))
    if pictures and (own := [file for file in files if out.resolve() == file.resolve().parent]):
        raise click.ClickException(f"The pictures would go where {own[0]} lies: give another --out, or --no-pictures.")
    keep_freed_memory()  # before jax starts
    if batch_size is None:
        import jax

        batch_size = 1 if jax.default_backend() == "cpu" else 8
    detector = Detector.from_checkpoint(checkpoint, ema, batch_size=batch_size)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"--out={out} cannot be made ({error.strerror}): choose another folder.") from None

    found: dict[int, ImageDetections] = {}
    unreadable: dict[int, str] = {}
    notes = Faults("Note")
    stopped = False
    try:
        with click.progressbar(length=len(files), label="predicting", file=sys.stderr) as bar:
            for index, image, result in detector.stream(files, threshold):
                if image is None or not isinstance(result, ImageDetections):
                    unreadable[index] = str(result)
                else:
                    if pictures:
                        try:
                            with fitting(f"The picture of {files[index]}", "Use --no-pictures."):
                                _save(draw(image, result), out / names[index])
                        except OutOfMemoryError as error:
                            faults.append(str(error))
                    found[index] = result
                    for note in result.notes:
                        notes.add(note, str(files[index]))
                bar.update(1)
    except KeyboardInterrupt:
        stopped = True
    finally:
        if found:
            _write_predictions(out / _PREDICTIONS, found, files, names if pictures else None)

    for kind, count in notes.counts.items():
        click.echo(f"{_some(notes.first[kind], count)}: {kind}.", err=True)
    for sentence in (*faults, *(unreadable[index] for index in sorted(unreadable))):
        click.echo(sentence, err=True)
    objects = counted(sum(map(len, found.values())), "object")
    unread = f"; {len(unreadable)} could not be read" if unreadable else ""
    where = f"; see {out / _PREDICTIONS}" if found else "; nothing is written"
    click.echo(f"{objects} found in {counted(len(found), 'image')}{unread}{where}")
    if stopped:
        fail(f"Stopped before the other {len(files) - len(found) - len(unreadable)} images.", STOPPED)
    raise SystemExit(1 if faults or unreadable else 0)


def find_images(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The files that paths, folders and patterns stand for, each once and in order.

    Returns:
      The files, and a sentence for each path, folder or pattern that stands for none.
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
    """The files that a path, folder or pattern stands for; a DataError says that it stands for none."""
    path = Path(name)
    if path.is_dir():
        found = [child for child in sorted(path.iterdir()) if child.is_file() and _is_image(child)]
        absent = f"The folder {path} holds no image ({', '.join(_SUFFIXES)})."
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
    return path.suffix.lower() in _SUFFIXES


def _others(out: Path) -> list[str]:
    """The names of the files in a folder that are not the pictures of an earlier prediction."""
    try:
        earlier = {entry.get("picture") for entry in json.loads((out / _PREDICTIONS).read_text())}
    except (OSError, ValueError, AttributeError, TypeError):
        earlier = set()
    return [file.name for file in out.iterdir() if file.name not in earlier] if out.is_dir() else []


def _picture_names(files: Sequence[Path], others: Iterable[str]) -> list[str]:
    """A file name for each picture: that of its image, with a number where that is taken, by ``others`` as well."""
    taken = {name.lower() for name in others}  # as some file systems see names
    names = []
    for file in files:
        suffix = file.suffix if file.suffix.lower() in _PICTURES else ".png"
        name, number = f"{file.stem}{suffix}", 1
        while name.lower() in taken:
            number += 1
            name = f"{file.stem}-{number}{suffix}"
        taken.add(name.lower())
        names.append(name)
    return names


def draw(image: np.ndarray, found: ImageDetections) -> Image.Image:
    """An image [H, W, 3] uint8 with what was found in it, enlarged where it is small."""
    categories = dict(zip(found.labels.tolist(), found.names, strict=True))
    scale = max(1, round(_LEAST_SIDE / max(image.shape[:2])))
    return draw_boxes(image, LabelledBoxes(found.boxes, found.labels, found.scores), categories, scale=scale)


def _save(picture: Image.Image, path: Path) -> None:
    try:
        picture.save(path, quality=92)  # of JPEG; PNG passes over it
    except (OSError, ValueError) as error:
        raise click.ClickException(f"The picture {path} cannot be written ({error}).") from None


def _write_predictions(
    path: Path, found: dict[int, ImageDetections], files: Sequence[Path], pictures: Sequence[str] | None
) -> None:
    """Writes predictions.json, an image a line, in the order of the files; ``pictures`` are the names of theirs."""
    lines = []
    for index in sorted(found):
        height, width = found[index].size
        columns = (found[index].boxes.tolist(), found[index].scores.tolist(), found[index].labels.tolist())
        rows = [
            {"box": box, "score": score, "label": label, "name": name}
            for box, score, label, name in zip(*columns, found[index].names, strict=True)
        ]
        names = {"file": str(files[index])} | ({"picture": pictures[index]} if pictures else {})
        lines.append(json.dumps(names | {"width": width, "height": height, "detections": rows}))
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def _some(names: Sequence[str], count: int) -> str:
    """The first of ``count`` names."""
    more = count - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
