"""``detr-jax export``: write a detector as StableHLO programs, which run without this package."""

import re
from pathlib import Path

import click

from detr_jax.checkpoints import load_category_ids, load_class_names, load_model
from detr_jax.printing import say


class _Bucket(click.ParamType):
    name = "HxW"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        found = re.fullmatch(r"(\d+)x(\d+)", value)
        if not found:
            self.fail(f"{value!r} is not understood: give height and width in pixels, such as 800x1344.", param, ctx)
        return int(found[1]), int(found[2])


@click.command("export", short_help="StableHLO that runs without this package.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--bucket",
    "--canvas",
    "buckets",
    type=_Bucket(),
    multiple=True,
    help="Height and width in pixels that images are padded to; may be given several times. Default: the buckets of "
    "validation, or else one landscape and one portrait bucket that hold every resized image. If images are not "
    "resized: squares up to data.max_long_side.",
)
@click.option(
    "--platforms",
    default="cpu,cuda,tpu",
    show_default=True,
    help="Platforms to run on, among cpu,cuda,rocm,tpu.",
)
@click.option(
    "--weights",
    type=click.Choice(["inside", "beside"]),
    default="inside",
    show_default=True,
    help="Write the weights into each program, or once to a file of their own.",
)
@click.option("--masks/--no-masks", default=False, show_default=True, help="Also return the mask of each detection.")
@click.option("--ema/--no-ema", default=True, show_default=True, help="Use the EMA of the parameters if there is one.")
def export_command(
    checkpoint: Path,
    out: Path,
    buckets: tuple[tuple[int, int], ...],
    platforms: str,
    weights: str,
    masks: bool,
    ema: bool,
) -> None:
    """Write a detector as StableHLO programs that run without this package.

    CHECKPOINT is a checkpoint, or the workdir of a run, whose newest checkpoint is used. WORKDIR/best is its best
    checkpoint. Checkpoints of other frameworks must be converted by import-weights. OUT is a new folder. It gets one
    float32 program per bucket, for any batch size, the class names, and loader.py, which runs the programs.

    \b
    Examples:
      detr-jax export runs/shapes/best shapes-model
      detr-jax export runs/coco model --bucket 800x1088 --bucket 1088x800 --platforms cuda --weights beside
    """
    from detr_jax.export import export_model

    try:
        model, config = load_model(checkpoint, ema=ema, dtype="float32")
        files = export_model(
            model,
            config,
            out,
            buckets=buckets,
            platforms=[name.strip() for name in platforms.split(",") if name.strip()],
            weights_beside=weights == "beside",
            class_names=load_class_names(checkpoint),
            category_ids=load_category_ids(checkpoint),
            masks=masks,
        )
    except OSError as error:
        raise click.ClickException(f"{out} cannot be written ({error.strerror}): choose another folder.") from None
    for file in files:
        say(f"{file.stat().st_size / 2**20:9.2f} MiB  {file}")
