"""Data sets: looking at them, and making one."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import click
import numpy as np

from detr_jax.cli.configuration import ConfigurableCommand, read_config
from detr_jax.cli.output import check_writable, counted
from detr_jax.config import Config, ModelConfig, ShapesConfig, check_data
from detr_jax.data import DataError, Source, check_classes, find_layout
from detr_jax.data.bucket_counts import settle_train_buckets, settle_val_buckets
from detr_jax.data.buckets import train_buckets, train_sizes, useful_share, val_buckets, val_sizes
from detr_jax.data.checking import Progress, Report, check_source, note_leaks
from detr_jax.data.opening import open_to_check
from detr_jax.data.shapes import write_coco
from detr_jax.visualization import LabelledBoxes, sample_sheet
from detr_jax.wording import image_name

_SAMPLES = 24  # images in a picture


@click.command("check-data", cls=ConfigurableCommand, short_help="Check a data set.")
@click.option("--config", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="As for train.py.")
@click.option(
    "--dataset", help="coco, yolo, voc, labelme, tfds or shapes: short for --config.data.dataset. Default: recognised."
)
@click.option("--root", help="Folder of the data set: the same as FOLDER.")
@click.option("--split", type=click.Choice(["train", "val"]), help="Check only one of the two.")
@click.option(
    "--threads", type=click.IntRange(0), default=0, help="Threads that read images; 0, the default: one per core."
)
@click.option("--pixels/--no-pixels", default=True, show_default=True, help="Read and decode every image.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw sample images into this file.")
@click.argument("folder", required=False)
def check_data_command(
    file: Path | None,
    dataset: str | None,
    root: str | None,
    split: str | None,
    threads: int,
    pixels: bool,
    picture: Path | None,
    folder: str | None,
    changes: tuple[str, ...],
) -> None:
    """Read a data set from end to end, and report what is wrong with it and what it is like.

    The data set is FOLDER, whose kind is recognised, or that of a configuration file, as for train.py. The exit code is
    1 if the data cannot be used for training, else 0. Problems that are handled automatically are listed too. With
    --config or --config.model.num_classes, the command also checks that num_classes covers every label.

    \b
    Examples:
      detr-jax check-data FOLDER --picture samples.png
      detr-jax check-data --config configs/coco.py --config.data.root=FOLDER
      detr-jax check-data --dataset tfds --config.data.sources.tfds.name=voc/2007
    """
    if folder is not None and root is not None:
        raise click.ClickException(f"Give the data set once: as FOLDER ({folder}) or as --root={root}.")
    config = read_config(file, changes, dataset=dataset, root=folder if root is None else root)
    check_data(config.data)
    if picture is not None:
        check_writable(picture, "--picture")
        if picture.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise click.ClickException(f"--picture={picture} must end in .png, .jpg or .webp.")
    model_given = file is not None or any(change.startswith("--config.model.num_classes") for change in changes)
    fine = True
    reports: dict[str, Report] = {}
    samples: list[tuple[str, np.ndarray, LabelledBoxes]] = []
    categories: dict[int, str] = {}
    splits = [split] if split else ["train", "val"]
    if layout := find_layout(config.data):
        click.echo(f"{layout.sentence}.")
    for name, source in open_to_check(config, splits).items():
        if name != splits[0]:
            click.echo()
        if isinstance(source, DataError):
            click.echo(f"{name}: {source}", err=True)
            fine = False
            continue
        num_queries = config.model.num_queries or ModelConfig.num_queries
        report = check_source(source, num_queries, threads=threads, pixels=pixels, progress=_progress(name))
        if "train" in reports:
            note_leaks(reports["train"], report)
        reports[name] = report
        train_images = len(reports["train"].sizes) if "train" in reports else len(source)
        click.echo(f"{name}: " + "\n".join(report.lines()))
        fine &= not report.faults.errors
        try:
            if len(source):
                click.echo(_buckets(source, name, config, train_images))
            if model_given and config.model.num_classes:
                check_classes(source, config.model.num_classes)
        except DataError as error:
            click.echo(f"{name}: {error}", err=True)
            fine = False
        samples += _samples(source, name, _SAMPLES // len(splits)) if picture else []
        categories |= source.categories
    if picture and samples:
        titles, images, boxes = zip(*samples, strict=True)
        try:
            sample_sheet(picture, titles, images, boxes, categories)
        except (OSError, ValueError) as error:
            raise click.ClickException(f"The picture {picture} cannot be written ({error}).") from None
        click.echo(f"{counted(len(samples), 'image')} drawn into {picture}")
    click.echo("The data can be trained on." if fine else "The data cannot be trained on as it is.")
    raise SystemExit(0 if fine else 1)


def _buckets(source: Source, split: str, config: Config, train_images: int) -> str:
    """The buckets that the sizes imply, or that are configured, as a training would use them."""
    stride = config.model.backbone.stride
    if split == "train":
        data = settle_train_buckets(config, source).data
        buckets, sizes, given = train_buckets(source, data, stride), train_sizes(source, data), data.train_buckets
    else:
        data = settle_val_buckets(config, source, train_images).data
        buckets, sizes, given = val_buckets(source, data, stride), val_sizes(source, data), data.val_buckets
    shown = ", ".join(f"{height} x {width}" for height, width in buckets)
    which = "that are configured" if given else "that the sizes imply after resizing"
    share = useful_share(sizes, buckets)
    return f"buckets {which} (height x width; {share:.0%} of their pixels are image): {shown}"


def _progress(label: str) -> Progress:
    def progress(indices: Iterable[int]) -> Iterable[int]:
        with click.progressbar(indices, label=label, file=sys.stderr) as bar:
            yield from bar

    return progress


def _samples(source: Source, split: str, number: int) -> list[tuple[str, np.ndarray, LabelledBoxes]]:
    """Titles, images and boxes of images from all over a data set, passing over those that cannot be read."""
    found: list[tuple[str, np.ndarray, LabelledBoxes]] = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(number, len(source))).astype(int)):
        try:
            image, (boxes, labels) = source[int(index)]
        except DataError:
            continue
        found.append((f"{split}, {image_name(source, int(index))}", image, LabelledBoxes(boxes, labels)))
    return found


@click.command("make-shapes", short_help="A COCO folder of drawn shapes.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--train", type=click.IntRange(1), default=ShapesConfig.train_images, show_default=True, help="Images.")
@click.option("--val", type=click.IntRange(1), default=ShapesConfig.val_images, show_default=True, help="Images.")
@click.option("--min-size", type=click.IntRange(1), default=ShapesConfig.min_size, show_default=True, help="Pixels.")
@click.option("--max-size", type=click.IntRange(1), default=ShapesConfig.max_size, show_default=True, help="Pixels.")
@click.option("--max-objects", type=click.IntRange(0), default=ShapesConfig.max_objects, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=ShapesConfig.seed, show_default=True)
@click.option(
    "--format", "suffix", type=click.Choice(["png", "jpg"]), default="png", show_default=True, help="jpg: quality 95."
)
def make_shapes(
    folder: Path, train: int, val: int, min_size: int, max_size: int, max_objects: int, seed: int, suffix: str
) -> None:
    """Draw circles, squares and triangles into a COCO folder: data with known truth, to try things on.

    FOLDER is new and gets train2017/, val2017/ and annotations/.

    \b
    Example:
      detr-jax make-shapes shapes --train 1000 --val 100
      python train.py --config configs/shapes.py --config.data.dataset=coco --config.data.root=shapes
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.ClickException(f"{folder} exists already: give a new folder.")
    if min_size > max_size:
        raise click.ClickException(f"--min-size={min_size} must not be above --max-size={max_size}.")
    config = ShapesConfig(
        train_images=train, val_images=val, min_size=min_size, max_size=max_size, max_objects=max_objects, seed=seed
    )

    try:
        write_coco(config, folder, suffix=f".{suffix}", progress=_progress("drawing"))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # no half of a data set is left
        if isinstance(error, OSError):
            raise click.ClickException(f"{folder} cannot be written ({error.strerror}): choose another one.") from None
        raise
    click.echo(f"{train} training and {val} validation images written to {folder}")
