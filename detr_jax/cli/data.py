"""Data sets: looking at them, and making one."""

from collections.abc import Iterable
from pathlib import Path

import click

from detr_jax.config import ShapesConfig
from detr_jax.data.shapes import write_coco


@click.command("make-shapes")
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

    def progress(indices: Iterable[int]) -> Iterable[int]:
        with click.progressbar(indices, label="drawing") as bar:
            yield from bar

    try:
        write_coco(config, folder, suffix=f".{suffix}", progress=progress)
    except OSError as error:
        raise click.ClickException(f"{folder} cannot be written ({error}).") from None
    click.echo(f"{train} training and {val} validation images written to {folder}")
