"""The canvases that a training will use, before it starts."""

from pathlib import Path

import click
import numpy as np

from detr_jax.cli.configuration import read_config
from detr_jax.config import ConfigError, check, check_canvases
from detr_jax.data import DataError, TrainPlan, ValPlan, open_source
from detr_jax.data.buckets import Bucket, train_sizes, useful_share, val_sizes


@click.command("buckets", context_settings={"ignore_unknown_options": True})
@click.option("--config", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="As for train.py.")
@click.option("--root", help="Folder of the data set: short for --config.data.root.")
@click.option("--memory", is_flag=True, help="Compile the training step of each canvas and tell the bytes it needs.")
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--config.FIELD=VALUE]...")
def buckets(file: Path | None, root: str | None, memory: bool, changes: tuple[str, ...]) -> None:
    """Show the canvases of a data set: what is on each, and how much of it is image.

    The canvases are those that a training with this configuration uses. "useful" is pixels of images over pixels of
    canvases, over many random augmentations for training. With --memory, nothing is trained or allocated: the bytes
    are those of the program compiled for the devices that JAX sees here, of which others may need more or less.

    \b
    Examples:
      detr-jax buckets --root FOLDER --config.data.num_train_buckets=16
      detr-jax buckets --config configs/coco.py --root FOLDER --memory --config.training.batch_size=8
    """
    config = read_config(file, (*changes, *([] if root is None else [f"--config.data.root={root}"])))
    stride, size = config.model.backbone.stride, config.training.batch_size
    try:
        check(config)
        train, val = open_source(config, "train"), open_source(config, "val")
        plan, val_plan = (
            TrainPlan(train, config.data, size, config.training.seed, stride),
            ValPlan(val, config.data, config.evaluation.batch_size, stride),
        )
        check_canvases(config.model, (*plan.buckets, *val_plan.buckets))
    except (ConfigError, DataError) as error:
        raise click.ClickException(str(error)) from None

    _table(f"training, {len(train)} images", plan.buckets, train_sizes(train, config.data))
    _table(f"validation, {len(val)} images", val_plan.buckets, val_sizes(val, config.data))
    if memory:
        from detr_jax.sharding import create_mesh
        from detr_jax.training.memory import step_memory
        from detr_jax.training.start import check_devices

        mesh = create_mesh()
        try:
            check_devices(config, mesh)
        except ConfigError as error:
            raise click.ClickException(str(error)) from None
        click.echo(
            f"memory of the training step on each of {mesh.size} {mesh.devices.flat[0].platform} device(s), "
            f"{size} images in all, as compiled here:"
        )
        for height, width in plan.buckets:
            try:
                found = step_memory(config, (height, width), train.max_objects, mesh)
            except NotImplementedError as error:
                raise click.ClickException(str(error)) from None
            click.echo(
                f"{height:6} x {width:<6} {found.total / 2**20:10.0f} MiB: {found.state / 2**20:.0f} of state and "
                f"batch, {found.temporary / 2**20:.0f} within the step"
            )


def _table(title: str, canvases: list[Bucket], sizes: np.ndarray) -> None:
    """Prints each canvas with its share of the images and of useful pixels."""
    holds = (np.array(canvases) >= sizes[:, None]).all(axis=-1)
    taken = np.where(holds, np.prod(canvases, axis=1), np.inf).argmin(axis=1)
    click.echo(f"{title}: {useful_share(sizes, canvases):.1%} useful on {len(canvases)} canvases")
    click.echo("  height x width     images  useful")
    for number, canvas in enumerate(canvases):
        held = sizes[taken == number]
        useful = f"{useful_share(held, [canvas]):7.1%}" if len(held) else "      -"
        click.echo(f"{canvas[0]:8} x {canvas[1]:<8} {len(held) / len(sizes):6.1%} {useful}")
    click.echo()
