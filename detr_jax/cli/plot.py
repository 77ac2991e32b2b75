"""``detr-jax plot``: the report of a run, its animation, and pictures of attention."""

from pathlib import Path

import click

from detr_jax.cli.output import check_writable
from detr_jax.printing import say


@click.command("plot", short_help="Report, animation, attention.")
@click.argument("path", type=click.Path(path_type=Path), metavar="WORKDIR|CHECKPOINT")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the report (default: WORKDIR/report), or with --attention the file of the picture.",
)
@click.option("--animation", type=click.Path(dir_okay=False, path_type=Path), help="File: .gif, .png (APNG) or .webp.")
@click.option(
    "--attention",
    type=click.Path(path_type=Path),
    metavar="IMAGE",
    help="Image whose attention is drawn.",
)
@click.option("--root", help="Folder of the run's data set, if it has moved.")
@click.option(
    "--point", "points", type=(float, float), multiple=True, metavar="X Y",
    help="With --attention: pixel whose encoder attention is shown; default: the centres of the detections.",
)  # fmt: skip
@click.option(
    "--threshold", type=click.FloatRange(0, 1), help="With --attention: the lowest score of a detection; default: 0.5."
)
@click.option(
    "--max-detections",
    type=click.IntRange(1),
    help="With --attention: the largest number of detections to draw, highest scores first; default: 8.",
)
def plot(
    path: Path,
    out: Path | None,
    animation: Path | None,
    attention: Path | None,
    root: str | None,
    points: tuple[tuple[float, float], ...],
    threshold: float | None,
    max_detections: int | None,
) -> None:
    """Draw the report of a run, an animation of its training, or the attention of a model.

    The report is a folder of PNG files and one page, index.html, that contains them. It shows losses,
    diagnostics, learning rates, metrics, curves of precision and recall, confused classes, and the worst images. It
    needs the data set of the run.

    \b
    Examples:
      detr-jax plot runs/shapes
      detr-jax plot runs/shapes --animation training.webp
      detr-jax plot runs/shapes --attention image.png --out attention.png
    """
    from detr_jax.visualization.animation import SUFFIXES

    if animation is not None and attention is not None:
        raise click.ClickException("--animation and --attention are different pictures: give only one of them.")
    if animation is not None and out is not None:
        raise click.ClickException(f"--animation={animation} names the output file already: remove --out.")
    if attention is not None and root is not None:
        raise click.ClickException("--root is for the report and --animation: --attention needs no data set.")
    for option, given in (("--point", points), ("--threshold", threshold), ("--max-detections", max_detections)):
        if attention is None and given not in ((), None):
            raise click.ClickException(f"{option} is only for --attention=IMAGE.")
    if animation is not None and animation.suffix.lower() not in SUFFIXES:
        raise click.ClickException(f"--animation={animation} must end in one of {', '.join(SUFFIXES)}.")
    for option, file in (("--animation", animation), ("--out", out if attention is not None else None)):
        if file is not None:
            check_writable(file, option)
    try:
        if attention is not None:
            written = out or Path("attention.png")
            _draw_attention(path, attention, written, points, 0.5 if threshold is None else threshold, max_detections)
        elif animation is not None:
            from detr_jax.data import open_source
            from detr_jax.evaluation.report import animate, read_run

            written = animation
            config, _ = read_run(path, root)
            animate(path, animation, config, open_source(config, "val"))
        else:
            from detr_jax.evaluation.report import write_report
            from detr_jax.workdir import METRICS_FILE

            if not (path / METRICS_FILE).is_file():
                say(f"{path} has no {METRICS_FILE}: the report will have no charts of the training.", err=True)
            say("evaluating the detections of the last validation ...", err=True)
            written = write_report(path, out or path / "report", root)
    except OSError as error:
        raise click.ClickException(f"{error.filename or path} cannot be written ({error.strerror}).") from None
    say(f"written to {written}")


def _draw_attention(
    checkpoint: Path,
    image: Path,
    out: Path,
    points: tuple[tuple[float, float], ...],
    threshold: float,
    max_detections: int | None,
) -> None:
    from PIL import Image

    from detr_jax.inference import Detector
    from detr_jax.visualization.attention import MOST_OBJECTS

    if out.suffix.lower() not in Image.registered_extensions():
        raise click.ClickException(f"--out={out} must end in the suffix of a picture format, such as .png.")
    shown = Detector.from_checkpoint(checkpoint).attention(image, threshold)
    try:
        sheet = shown.draw(points or None, max_detections=max_detections or MOST_OBJECTS)
    except ValueError as error:
        raise click.ClickException(f"--point: {error}") from None
    sheet.save(out)
