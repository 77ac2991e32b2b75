"""``detr-jax predict``: detect objects in image files and write them as JSON and pictures."""

import dataclasses
import difflib
import json
import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from detr_jax.cli.configuration import ConfigurableCommand, check_fields_named, read_config
from detr_jax.cli.output import STOPPED, counted, fail, free_name, write_text
from detr_jax.cli.panoptic_files import PanopticFiles
from detr_jax.config import unknown_field
from detr_jax.files import LARGEST_LIST, read_text
from detr_jax.json_files import parse_json
from detr_jax.printing import say

if TYPE_CHECKING:  # imported when a prediction begins, so that --help is fast
    from PIL import Image

    from detr_jax.inference import Answer
    from detr_jax.results import ImageDetections

_PICTURES = (".jpg", ".jpeg", ".png")  # formats that a picture keeps; others become .png
_PREDICTIONS = "predictions.json"
_FIELDS = ("data.exif", "data.max_level", "data.max_long_side", "data.val_buckets", "data.val_short_side")
"""The fields that change how an image is prepared for prediction."""


@click.command("predict", cls=ConfigurableCommand, short_help="Find objects in images.")
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
@click.option(
    "--classes",
    multiple=True,
    metavar="NAME,...",
    help="Names or labels of the classes to keep, separated by commas; may be given several times. Default: all.",
)
@click.option(
    "--max-detections",
    type=click.IntRange(1),
    help="The largest number of detections per image, highest scores first.",
)
@click.option("--masks/--no-masks", default=False, show_default=True, help="Also find the mask of each object.")
@click.option(
    "--panoptic/--no-panoptic", default=False, show_default=True, help="Also find the panoptic segments of each image."
)
@click.option(
    "--panoptic-threshold",
    type=click.FloatRange(0.5, 1),
    help="Scores above it become panoptic segments. Default: 0.85, the original's.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Images predicted together. Default: 8, on a CPU 1.")
@click.option("--pictures/--no-pictures", default=True, show_default=True, help="Draw the detections of each image.")
@click.option("--ema/--no-ema", default=True, show_default=True, help="Use the EMA of the parameters if there is one.")
def predict(
    checkpoint: Path,
    images: tuple[str, ...],
    out: Path,
    threshold: float,
    classes: tuple[str, ...],
    max_detections: int | None,
    masks: bool,
    panoptic: bool,
    panoptic_threshold: float | None,
    batch_size: int | None,
    pictures: bool,
    ema: bool,
    changes: tuple[str, ...],
) -> None:
    """Find objects in images and write them as JSON and pictures.

    CHECKPOINT is a checkpoint, or the workdir of a run, whose newest checkpoint is used. IMAGE is a file, a folder, or
    a quoted pattern such as "photos/**/*.jpg". A folder stands for the images in it or, if it has none, in its folders.

    predictions.json in --out lists each image with its file, picture, width, height and detections. A detection has a
    box [x0, y0, x1, y1] in pixels, a score, a label and a name. Pictures of small images are enlarged. Other files in
    --out are never overwritten. The EXIF orientation of photos is applied. Images that cannot be read are reported, the
    others are still predicted, and the exit code is 1. Ctrl-C writes the results so far.

    With --masks, each detection has a segmentation: COCO's compressed run lengths of the mask. With --panoptic,
    panoptic.json and the PNG files in panoptic/ hold the segments of all images in COCO's panoptic format, and the
    pictures in panoptic_pictures/ show them. Both need a model with a mask head.

    Images are prepared as in training. Fields of data change that. For example, --config.data.val_short_side=480 is
    faster and finds fewer small objects.

    \b
    Examples:
      detr-jax predict runs/shapes photo.jpg
      detr-jax predict detr-r50 photos --out found --threshold 0.7
      detr-jax predict detr-r50 photos --classes person,car --max-detections 10
      detr-jax predict detr-r50-panoptic photos --masks --panoptic
    """
    from detr_jax.checkpoints import find_checkpoint, load_config
    from detr_jax.host_memory import keep_freed_memory
    from detr_jax.inference import Detector

    check_fields_named(changes, _FIELDS, f"of its fields, a prediction uses {', '.join(_known(_FIELDS))}.")
    find_checkpoint(checkpoint)
    files, faults = _files(images)
    keep_freed_memory()  # before reading the checkpoint starts jax
    base = load_config(checkpoint)
    if (masks or panoptic) and base.model.mask_stride is None:
        flag = "--masks" if masks else "--panoptic"
        raise click.ClickException(f"{flag} needs a model with a mask head, and the one in {checkpoint} has none.")
    if panoptic_threshold is not None and not panoptic:
        raise click.ClickException("--panoptic-threshold needs --panoptic.")
    names = _picture_names(files, out) if pictures else None
    segments = PanopticFiles(files, out) if panoptic else None
    config = read_config(None, changes, base=base)
    labels = _labels(classes, checkpoint, config.model.num_classes)
    detector = Detector.from_checkpoint(checkpoint, ema, batch_size=batch_size or _batch_size(), data=config.data)
    _create(out)
    if segments is not None:
        segments.add_classes(detector)
    results = _Results(files, out, names, faults, segments)
    stopped = False
    try:
        with click.progressbar(length=len(files), label="predicting", file=sys.stderr) as bar:
            above = {} if panoptic_threshold is None else {"panoptic_threshold": panoptic_threshold}
            stream = detector.stream(files, threshold, masks=masks, panoptic=panoptic, **above)
            for answer in stream:
                results.add(answer, labels, max_detections)
                bar.update(1)
    except KeyboardInterrupt:
        stopped = True
    finally:
        results.write()
    results.report()
    if stopped:
        left = len(files) - len(results.found) - len(results.unreadable)
        fail(f"Stopped before the other {counted(left, 'image')}.", STOPPED)
    raise SystemExit(1 if results.faults or results.unreadable else 0)


def _files(images: Sequence[str]) -> tuple[list[Path], list[str]]:
    """The image files of the arguments, and sentences about arguments without an image; ends if there is no image."""
    from detr_jax.cli.image_files import find_images

    files, faults = find_images(images)
    if not files:
        for sentence in faults:
            say(sentence, err=True)
        fail("There is no image to predict.")
    return files, faults


def _labels(classes: Sequence[str], checkpoint: Path, num_classes: int) -> set[int] | None:
    """The labels of --classes, as results have them; None for all."""
    from detr_jax.checkpoints import load_labels

    if not classes:
        return None
    known, ids, _ = load_labels(checkpoint)
    names = {ids.get(label, label): name for label, name in known.items()}
    return find_labels(classes, names, num_classes)


def _create(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(
            f"--out={out} cannot be created ({error.strerror}): choose another folder."
        ) from None


def _batch_size() -> int:
    """The default of --batch-size."""
    import jax

    return 1 if jax.default_backend() == "cpu" else 8


class _Results:
    """The results of all images so far, and their files."""

    def __init__(
        self,
        files: Sequence[Path],
        out: Path,
        names: Sequence[str] | None,
        faults: Sequence[str],
        panoptic: PanopticFiles | None,
    ):
        """Prepares the results.

        Args:
          files: the images.
          out: folder of the results.
          names: the file names of the pictures. None: no pictures.
          faults: sentences to report.
          panoptic: files of the panoptic segments, if they are written.
        """
        from detr_jax.data.source import Faults

        self.found: dict[int, ImageDetections] = {}
        self.unreadable: dict[int, str] = {}
        self.faults = list(faults)
        self._files, self._out, self._names = files, out, names
        self._notes = Faults("Note")
        self._panoptic = panoptic

    def add(self, answer: "Answer", labels: Collection[int] | None, max_detections: int | None) -> None:
        """Keeps the detections of an image with these labels, and draws its picture."""
        from detr_jax.memory import OutOfMemoryError, fitting
        from detr_jax.results import ImageDetections

        index, file = answer.index, self._files[answer.index]
        if answer.image is None or not isinstance(answer.result, ImageDetections):
            self.unreadable[index] = str(answer.result)
            return
        result = answer.result.only(labels, max_detections=max_detections)
        if self._names is not None:
            try:
                with fitting(f"The picture of {file}", "Use --no-pictures."):
                    _save(result.draw(answer.image), self._out / self._names[index])
                    if self._panoptic is not None and result.panoptic is not None:
                        self._panoptic.save_picture(index, result.panoptic.draw(answer.image))
            except OutOfMemoryError as error:
                self.faults.append(str(error))
        if self._panoptic is not None and result.panoptic is not None:
            self._panoptic.add(index, result.panoptic)
            result = dataclasses.replace(result, panoptic=None)  # it may take megabytes
        self.found[index] = result
        for note in result.notes:
            self._notes.add(note, str(file))

    def write(self) -> None:
        """Writes predictions.json if there is a result."""
        if self.found:
            _write_predictions(self._out / _PREDICTIONS, self.found, self._files, self._names)
        if self._panoptic is not None:
            self._panoptic.write()

    def report(self) -> None:
        """Prints notes, faults, and the number of objects."""
        for kind, count in self._notes.counts.items():
            say(f"{_some(self._notes.first[kind], count)}: {kind}.", err=True)
        for sentence in (*self.faults, *(self.unreadable[index] for index in sorted(self.unreadable))):
            say(sentence, err=True)
        objects = counted(sum(map(len, self.found.values())), "object")
        if self._panoptic is not None:
            objects += f" and {counted(self._panoptic.segments, 'panoptic segment')}"
        unread = f"; {len(self.unreadable)} could not be read" if self.unreadable else ""
        written = [_PREDICTIONS] if self._panoptic is None else [_PREDICTIONS, self._panoptic.file.name]
        paths = " and ".join(str(self._out / name) for name in written)
        where = f"; see {paths}" if self.found else "; nothing is written"
        say(f"{objects} found in {counted(len(self.found), 'image')}{unread}{where}")


def find_labels(classes: Sequence[str], names: Mapping[int, str], num_classes: int) -> set[int]:
    """The labels of classes that are given by name or label, separated by commas.

    Names take precedence over labels, and exact names over names that differ in upper and lower case. A text that is
    itself a name, with a comma in it, is not split.

    Args:
      classes: the values of --classes.
      names: name by label; empty if the checkpoint holds none.
      num_classes: classes of the model.

    Raises:
      click.ClickException: a class is not known.
    """
    labels = set()
    for given in classes:
        text = os.fsencode(given).decode("utf-8", "replace")  # also if the locale is not UTF-8
        parts = [part.strip() for part in text.split(",") if part.strip()]
        for wanted in [text] if text in names.values() or not parts else parts:
            same = {label for label, name in names.items() if name == wanted}
            same = same or {label for label, name in names.items() if name.casefold() == wanted.casefold()}
            if not same and wanted.isdecimal() and int(wanted) in (names or range(num_classes)):
                same = {int(wanted)}
            if not same:
                known = ", ".join(f"{label} {name}" for label, name in sorted(names.items()))
                known = known or f"labels from 0 to {num_classes - 1}, as the checkpoint holds no names"
                close = difflib.get_close_matches(wanted, names.values(), n=1)
                hint = f" (did you mean {close[0]!r}?)" if close else ""
                raise click.ClickException(f"--classes: the model has no class {wanted!r}{hint}. It has: {known}.")
            labels |= same
    return labels


def _known(fields: Sequence[str]) -> list[str]:
    return [field for field in fields if unknown_field(field) is None]


def _others(out: Path) -> list[str]:
    """The names of the files in a folder that are not the pictures of an earlier prediction."""
    try:
        earlier = {entry.get("picture") for entry in parse_json(read_text(out / _PREDICTIONS, LARGEST_LIST))}
    except (OSError, ValueError, AttributeError, TypeError):
        earlier = set()
    return [file.name for file in out.iterdir() if file.name not in earlier] if out.is_dir() else []


def _picture_names(files: Sequence[Path], out: Path) -> list[str]:
    """A file name for each picture: the name of its image, with a number if another picture or file has it.

    Raises:
      click.ClickException: an image is in the folder of the pictures.
    """
    if own := [file for file in files if out.resolve() == file.resolve().parent]:
        raise click.ClickException(
            f"The pictures would be written to the folder of {own[0]}: give another --out, or --no-pictures."
        )
    taken = {name.lower() for name in _others(out)}  # some file systems ignore case
    suffixes = [file.suffix if file.suffix.lower() in _PICTURES else ".png" for file in files]
    return [free_name(file.stem, suffix, taken) for file, suffix in zip(files, suffixes, strict=True)]


def _save(picture: "Image.Image", path: Path) -> None:
    try:
        picture.save(path, quality=92)  # for JPEG; PNG ignores it
    except (OSError, ValueError) as error:
        raise click.ClickException(f"The picture {path} cannot be written ({error}).") from None


def _write_predictions(
    path: Path, found: "dict[int, ImageDetections]", files: Sequence[Path], pictures: Sequence[str] | None
) -> None:
    """Writes predictions.json, one line per image in the order of the files; ``pictures`` are the pictures' names.

    Pixels have one decimal (without negative zero) and scores have four.
    """
    lines = []
    for index in sorted(found):
        height, width = found[index].size
        columns = (found[index].boxes.tolist(), found[index].scores.tolist(), found[index].labels.tolist())
        runs = found[index].run_lengths
        masks = [{}] * len(found[index]) if runs is None else [{"segmentation": one} for one in runs]
        rows = [
            {"box": [round(x, 1) + 0.0 for x in box], "score": round(score, 4), "label": label, "name": name, **mask}
            for box, score, label, name, mask in zip(*columns, found[index].names, masks, strict=True)
        ]
        names = {"file": str(files[index])} | ({"picture": pictures[index]} if pictures else {})
        lines.append(json.dumps(names | {"width": width, "height": height, "detections": rows}))
    write_text(path, "[\n" + ",\n".join(lines) + "\n]\n")


def _some(names: Sequence[str], count: int) -> str:
    """The first of ``count`` names."""
    more = count - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
