"""Training a model, judging it, and using it."""

import glob
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click
import numpy as np
from absl import logging
from PIL import Image

from detr_jax.checkpoints import CheckpointError, find_checkpoint, load_config, load_model
from detr_jax.cli.configuration import read_config
from detr_jax.config import Config, ConfigError, check, check_canvases
from detr_jax.data import DataError, open_source
from detr_jax.data.images import IMAGE_SUFFIXES
from detr_jax.data.source import Faults
from detr_jax.inference import Detector
from detr_jax.results import ImageDetections
from detr_jax.visualization import LabelledBoxes, draw_boxes
from detr_jax.weights import WeightsError

_SUFFIXES = (*IMAGE_SUFFIXES, ".gif")
_PICTURES = (".jpg", ".jpeg", ".png")  # formats that a picture keeps; others become .png


def run_training(config: Config, workdir: str | Path) -> None:
    """Trains, and ends the process with a sentence and an exit code where that comes to no good end.

    Where there are other processes, what ends one of them ends all.
    """
    from detr_jax.training.loop import TrainingError, train
    from detr_jax.training.signals import Interrupted

    logging.set_verbosity(logging.ERROR)
    try:
        train(config, workdir)
    except Interrupted as stopped:
        _fail(stopped, 128 + stopped.signal_number)
    except (ConfigError, DataError, CheckpointError, TrainingError, WeightsError) as error:
        _end_others(error)
        _fail(error)
    except BaseException as error:
        _end_others(error, traceback.format_exc())
        raise


def _fail(message: object, code: int = 1) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


def _end_others(error: BaseException, shown: str = "") -> None:
    """Where there are other processes, ends them and this one."""
    import jax

    if jax.distributed.is_initialized():
        from detr_jax.distributed import end_all

        end_all(f"{type(error).__name__}: {error}" if shown else str(error), 1, shown)


@click.command("train", context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.option("--config", "file", metavar="FILE", help="Configuration file, such as configs/shapes.py.")
@click.option("--workdir", type=click.Path(path_type=Path), help="Folder of the run; default: runs/NAME_OF_CONFIG.")
@click.option("--distributed", is_flag=True, help="One of several processes, which jax finds: on TPU, Slurm, MPI.")
@click.option("--coordinator", metavar="HOST:PORT", help="Process 0, where jax does not find it.")
@click.option(
    "--num-processes", "--num_processes", type=int, metavar="N", help="With --coordinator: how many there are."
)
@click.option("--process-id", "--process_id", type=int, metavar="I", help="With --coordinator: this one, from 0 on.")
@click.option(
    "--connect-timeout",
    "--connect_timeout",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long processes wait for one another at the start.",
)
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--config.FIELD=VALUE]...")
def train_command(
    file: str | None,
    workdir: Path | None,
    distributed: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    connect_timeout: int,
    changes: tuple[str, ...],
) -> None:
    """Train a model, or go on where an earlier run in the same workdir stopped: the program train.py.

    The workdir gets checkpoints, metrics.jsonl and pictures. Ctrl-C saves before it stops. On several hosts give each
    the same command with --distributed (docs/scaling.md) and a workdir that all of them see.

    \b
    Examples:
      detr-jax train --config configs/shapes.py
      detr-jax train --config configs/coco.py --config.data.root=FOLDER --config.training.batch_size=16
      detr-jax train --config configs/coco.py --coordinator=HOST:8476 --num-processes=2 --process-id=0
    """
    if file is None:
        raise click.ClickException("Give a configuration: --config configs/shapes.py")
    config = read_config(file, changes)
    if distributed or coordinator is not None or num_processes is not None or process_id is not None:
        from detr_jax.distributed import DistributedError, start

        try:
            start(coordinator, num_processes, process_id, timeout=connect_timeout)
        except DistributedError as error:
            raise click.ClickException(str(error)) from None
    run_training(config, workdir or Path("runs") / Path(file.partition(":")[0]).stem)


@click.command("evaluate", context_settings={"ignore_unknown_options": True})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--root", help="Folder of the data set: short for --config.data.root. Default: as in training.")
@click.option("--dataset", help="coco, yolo, voc, tfds or shapes: short for --config.data.dataset.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write the numbers here too.")
@click.option("--ema/--no-ema", default=True, show_default=True, help="Take the moving average where there is one.")
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--config.FIELD=VALUE]...")
def evaluate(
    checkpoint: Path, root: str | None, dataset: str | None, file: Path | None, ema: bool, changes: tuple[str, ...]
) -> None:
    """Judge a checkpoint on validation images: the 12 numbers of COCO, and the AP of each class.

    CHECKPOINT is the workdir of a run, of which the newest checkpoint is taken, or a checkpoint. The data and
    everything else are as in its training, so that the numbers are those that the training logged; --root, --dataset
    and fields of data and evaluation change that. A model trained on shapes takes --root for a COCO folder.
    --json writes the numbers under the names that they have in metrics.jsonl.

    \b
    Examples:
      detr-jax evaluate runs/shapes
      detr-jax evaluate detr-r50 --root COCO --json numbers.json
      detr-jax evaluate runs/voc --root FOLDER --config.data.val_split=test
    """
    from detr_jax.evaluation.coco import METRICS

    for change in changes:
        if change.startswith("--config.") and not change.startswith(("--config.data.", "--config.evaluation.")):
            raise click.ClickException(
                f"{change} cannot be changed: a checkpoint is evaluated as it is, on other data."
            )
    if file is not None and not file.parent.is_dir():
        raise click.ClickException(f"{file} cannot be written: there is no folder {file.parent}.")
    base = load_config(checkpoint)
    if root is not None and dataset is None and base.data.dataset == "shapes":
        dataset = "coco"
    given = {"root": root, "dataset": dataset}
    short = [f"--config.data.{name}={value}" for name, value in given.items() if value is not None]
    config = read_config(None, (*short, *changes), base=base)
    metrics = _metrics(checkpoint, config, ema)
    for name in METRICS:
        click.echo(f"{name:<6} {_number(metrics[name])}")
    click.echo("AP of each class:")
    classes = {name.partition("/")[2]: value for name, value in metrics.items() if "/" in name}
    width = max(map(len, classes), default=0)
    for name, value in classes.items():
        click.echo(f"  {name:<{width}}  {_number(value)}")
    if file is not None:
        step = find_checkpoint(checkpoint).name
        values = {f"val/{name}": value for name, value in metrics.items()}
        _write_text(file, json.dumps({**({"step": int(step)} if step.isdigit() else {}), **values}) + "\n")


def _metrics(checkpoint: Path, config: Config, ema: bool) -> dict[str, float]:
    """The metrics of a checkpoint's model, by the very program that a training validates with."""
    from flax import nnx

    from detr_jax.compilation_cache import keep_compiled_programs
    from detr_jax.evaluation.validator import Validator
    from detr_jax.sharding import mesh_for_batch

    logging.set_verbosity(logging.ERROR)
    keep_compiled_programs()
    check(config)
    source = open_source(config, "val")
    for sentence in source.faults.sentences():
        click.echo(f"Data fault: {sentence}", err=True)
    model, _ = load_model(checkpoint, ema=ema)
    graph, values = nnx.split(model)
    validator = Validator(config, source, graph, mesh_for_batch(config.evaluation.batch_size))
    check_canvases(config.model, validator.plan.buckets)
    with click.progressbar(length=len(source), label="evaluating", file=sys.stderr) as bar:
        found = validator.detect((nnx.as_pure(values),), after_batch=bar.update)
    return validator.judge(found)


def _number(value: float) -> str:
    return f"{value:.4f}" if value >= 0 else "no such objects"


@click.command("predict")
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
    y1] in pixels, score, label and name. Photos are turned as their EXIF data say. What cannot be read is named, the
    other images are still done, and the exit code is 1. Ctrl-C writes what has been found so far.

    \b
    Examples:
      detr-jax predict runs/shapes photo.jpg
      detr-jax predict detr-r50 photos --out found --threshold 0.7
    """
    files, faults = find_images(images)
    names = _picture_names(files)
    if pictures and (own := [file for file in files if out.resolve() == file.resolve().parent]):
        raise click.ClickException(f"The pictures would go where {own[0]} lies: give another --out, or --no-pictures.")
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
                        _save(draw(image, result), out / names[index])
                    found[index] = result
                    for note in result.notes:
                        notes.add(note, str(files[index]))
                bar.update(1)
    except KeyboardInterrupt:
        stopped = True
    finally:
        _write_predictions(out / "predictions.json", found, files, names if pictures else None)

    for kind, count in notes.counts.items():
        click.echo(f"{_some(notes.first[kind], count)}: {kind}.", err=True)
    for sentence in (*faults, *(unreadable[index] for index in sorted(unreadable))):
        click.echo(sentence, err=True)
    objects = sum(map(len, found.values()))
    click.echo(f"{objects} objects found in {len(found)} images; see {out / 'predictions.json'}")
    if stopped:
        _fail(f"Stopped before the other {len(files) - len(found) - len(unreadable)} images.", 130)
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


def _picture_names(files: Sequence[Path]) -> list[str]:
    """A file name for each picture: that of its image, with a number where that is taken."""
    taken: dict[str, str] = {}  # by lower case, as some file systems see names
    for file in files:
        suffix = file.suffix if file.suffix.lower() in _PICTURES else ".png"
        name, number = f"{file.stem}{suffix}", 1
        while name.lower() in taken:
            number += 1
            name = f"{file.stem}-{number}{suffix}"
        taken[name.lower()] = name
    return list(taken.values())


def draw(image: np.ndarray, found: ImageDetections) -> Image.Image:
    """An image [H, W, 3] uint8 with what was found in it."""
    categories = dict(zip(found.labels.tolist(), found.names, strict=True))
    return draw_boxes(image, LabelledBoxes(found.boxes, found.labels, found.scores), categories)


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
    _write_text(path, "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written ({error.strerror}).") from None


def _some(names: Sequence[str], count: int) -> str:
    """The first of ``count`` names."""
    more = count - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")
