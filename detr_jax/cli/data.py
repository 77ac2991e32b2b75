"""`detr-jax check-data`: check a data set. `detr-jax make-shapes`: write a COCO folder of drawn shapes."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np

from detr_jax.cli.configuration import ConfigurableCommand, config_option, read_config
from detr_jax.cli.output import check_writable, counted
from detr_jax.config import BACKGROUND_KINDS, Config, ModelConfig, ShapesConfig, check_data
from detr_jax.data import DataError, Source, check_classes, find_layout
from detr_jax.data.bucket_counts import settle_train_buckets, settle_val_buckets
from detr_jax.data.buckets import train_buckets, train_sizes, useful_share, val_buckets, val_sizes
from detr_jax.data.checking import Progress, Report, check_source, fault_of_image, note_leaks
from detr_jax.data.opening import open_to_check
from detr_jax.data.shapes import write_coco
from detr_jax.printing import say
from detr_jax.visualization import LabelledBoxes, sample_sheet
from detr_jax.wording import image_name

_SAMPLES = 24  # images in a picture


@click.command("check-data", cls=ConfigurableCommand, short_help="Check a data set.")
@config_option
@click.option(
    "--dataset",
    help="coco, coco_panoptic, yolo, voc, labelme, tfds or shapes. Short for --config.data.dataset. By default it is "
    "recognised.",
)
@click.option("--root", help="Folder of the data set: the same as FOLDER.")
@click.option("--split", type=click.Choice(["train", "val"]), help="Check only this split.")
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="Threads that read images. 0, the default: one per core."
)
@click.option("--pixels/--no-pixels", default=True, show_default=True, help="Read and decode every image.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw sample images into this file.")
@click.argument("folder", required=False)
def check_data_command(
    config_name: str | None,
    dataset: str | None,
    root: str | None,
    split: str | None,
    threads: int,
    pixels: bool,
    picture: Path | None,
    folder: str | None,
    changes: tuple[str, ...],
) -> None:
    """Read a whole data set, and report its errors, classes, sizes and buckets.

    The data set is FOLDER, whose kind is recognised, or the data set of a configuration, as for training. The exit
    code is 1 if the data cannot be used for training, else 0. Problems that are handled automatically are listed too.
    With --config or --config.model.num_classes, the command also checks that num_classes covers every label.

    \b
    Examples:
      detr-jax check-data FOLDER --picture samples.png
      detr-jax check-data --config coco --config.data.root=FOLDER
      detr-jax check-data --dataset tfds --config.data.sources.tfds.name=voc/2007
    """
    if folder is not None and root is not None:
        raise click.ClickException(f"Give the data set once: as FOLDER ({folder}) or as --root={root}.")
    config = read_config(config_name, changes, dataset=dataset, root=folder if root is None else root)
    check_data(config.data)
    if picture is not None:
        _check_picture(picture)
    model_given = config_name is not None or any(change.startswith("--config.model.num_classes") for change in changes)
    fine = True
    reports: dict[str, Report] = {}
    samples: list[tuple[str, np.ndarray, LabelledBoxes]] = []
    categories: dict[int, str] = {}
    splits = [split] if split else ["train", "val"]
    if layout := find_layout(config.data):
        say(f"{layout.sentence}.")
    for name, source in open_to_check(config, splits).items():
        if name != splits[0]:
            say()
        if isinstance(source, DataError):
            say(f"{name}: {source}", err=True)
            fine = False
            continue
        fine &= _check_split(source, name, config, reports, threads, pixels, model_given)
        samples += _samples(source, name, _SAMPLES // len(splits)) if picture else []
        categories |= source.categories
    if picture and samples:
        _draw_samples(picture, samples, categories)
    say("The data can be trained on." if fine else "The data cannot be trained on: correct the errors above.")
    raise SystemExit(0 if fine else 1)


def _check_picture(path: Path) -> None:
    """Fails if ``--picture`` cannot be written or has an unknown suffix."""
    check_writable(path, "--picture")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise click.ClickException(f"--picture={path} must end in .png, .jpg or .webp.")


def _check_split(
    source: Source,
    name: str,
    config: Config,
    reports: dict[str, Report],
    threads: int,
    pixels: bool,
    model_given: bool,
) -> bool:
    """Prints the report of a split and adds it to ``reports``. Returns whether the split can be used for training.

    ``reports`` holds the reports of earlier splits. If it has one for the training split, their images are compared.
    """
    num_queries = config.model.num_queries or ModelConfig.num_queries
    report = check_source(source, num_queries, threads=threads, pixels=pixels, progress=_progress(name))
    if "train" in reports:
        note_leaks(reports["train"], report)
    reports[name] = report
    train_images = len(reports["train"].sizes) if "train" in reports else len(source)
    first, *others = report.lines()
    say(f"{name}: {first}", *others)
    try:
        if len(source):
            say(_buckets(source, name, config, train_images))
        if model_given and config.model.num_classes:
            check_classes(source, config.model.num_classes)
    except DataError as error:
        say(f"{name}: {error}", err=True)
        return False
    return not report.faults.errors


def _draw_samples(path: Path, samples: list[tuple[str, np.ndarray, LabelledBoxes]], categories: dict[int, str]) -> None:
    """Draws the sample images with their boxes into one file."""
    titles, images, boxes = zip(*samples, strict=True)
    try:
        sample_sheet(path, titles, images, boxes, categories)
    except (OSError, ValueError) as error:
        raise click.ClickException(f"The picture {path} cannot be written ({error}).") from None
    say(f"{counted(len(samples), 'image')} drawn into {path}")


def _buckets(source: Source, split: str, config: Config, train_images: int) -> str:
    """A line about the buckets that a training run would use. They are configured, or follow from the image sizes."""
    stride = config.model.stride
    if split == "train":
        data = settle_train_buckets(config, source).data
        buckets, sizes, given = train_buckets(source, data, stride), train_sizes(source, data), data.train_buckets
    else:
        data = settle_val_buckets(config, source, train_images).data
        buckets, sizes, given = val_buckets(source, data, stride), val_sizes(source, data), data.val_buckets
    shown = ", ".join(f"{height} x {width}" for height, width in buckets)
    origin = "configured" if given else "chosen from the sizes after resizing"
    share = useful_share(sizes, buckets)
    return f"buckets, {origin} (height x width; {share:.0%} of their pixels belong to images): {shown}"


def _progress(label: str) -> Progress:
    def progress(indices: Iterable[int]) -> Iterable[int]:
        with click.progressbar(indices, label=label, file=sys.stderr) as bar:
            yield from bar

    return progress


def _samples(source: Source, split: str, number: int) -> list[tuple[str, np.ndarray, LabelledBoxes]]:
    """Titles, images and boxes of ``number`` images, evenly spaced in the data set. Unreadable images are ignored."""
    found: list[tuple[str, np.ndarray, LabelledBoxes]] = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(number, len(source))).astype(int)):
        if fault_of_image(source, int(index)):
            continue
        sample = source[int(index)]
        try:
            masks = None if sample.objects.masks is None else sample.objects.masks.bitmaps()
        except DataError:
            continue
        boxes = LabelledBoxes(sample.objects.boxes, sample.objects.labels, masks=masks)
        found.append((f"{split}, {image_name(source, int(index))}", sample.image, boxes))
    return found


@click.command("make-shapes", short_help="Write a COCO folder of drawn shapes.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--train", type=click.IntRange(1), default=ShapesConfig.train_images, show_default=True, help="Training images."
)
@click.option(
    "--val", type=click.IntRange(1), default=ShapesConfig.val_images, show_default=True, help="Validation images."
)
@click.option(
    "--min-size",
    type=click.IntRange(1),
    default=ShapesConfig.min_size,
    show_default=True,
    help="Shortest side, in pixels.",
)
@click.option(
    "--max-size",
    type=click.IntRange(1),
    default=ShapesConfig.max_size,
    show_default=True,
    help="Longest side, in pixels.",
)
@click.option(
    "--max-objects",
    type=click.IntRange(0),
    default=ShapesConfig.max_objects,
    show_default=True,
    help="Most objects per image.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=ShapesConfig.seed, show_default=True, help="Seed of the random numbers."
)
@click.option(
    "--backgrounds/--no-backgrounds",
    default=False,
    show_default=True,
    help="Draw backgrounds of several classes, and also write panoptic annotations.",
)
@click.option(
    "--format",
    "suffix",
    type=click.Choice(["png", "jpg"]),
    default="png",
    show_default=True,
    help="Image format. jpg has quality 95.",
)
def make_shapes(
    folder: Path,
    train: int,
    val: int,
    min_size: int,
    max_size: int,
    max_objects: int,
    seed: int,
    backgrounds: bool,
    suffix: str,
) -> None:
    """Write a COCO folder of drawn circles, squares and triangles, whose boxes and masks are exact.

    FOLDER must be new or empty. The command writes train2017/, val2017/ and annotations/ into it.

    \b
    Examples:
      detr-jax make-shapes shapes --train 1000 --val 100
      detr-jax train --config shapes --config.data.dataset=coco --config.data.root=shapes
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.ClickException(f"{folder} exists already and is not an empty folder: give a new folder.")
    if min_size > max_size:
        raise click.ClickException(f"--min-size={min_size} must not be above --max-size={max_size}.")
    config = ShapesConfig(
        train_images=train,
        val_images=val,
        min_size=min_size,
        max_size=max_size,
        max_objects=max_objects,
        seed=seed,
        backgrounds=BACKGROUND_KINDS if backgrounds else (),
    )

    try:
        write_coco(config, folder, suffix=f".{suffix}", progress=_progress("drawing"))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete data set is removed
        if isinstance(error, OSError):
            raise click.ClickException(f"{folder} cannot be written ({error.strerror}): choose another one.") from None
        raise
    say(f"{train} training and {val} validation images written to {folder}")
