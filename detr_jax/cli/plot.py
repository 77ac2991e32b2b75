"""Pictures of a run and of what a model looks at."""

from pathlib import Path

import click

from detr_jax.data import DataError, open_source
from detr_jax.visualization.animation import SUFFIXES


@click.command("plot")
@click.argument("path", type=click.Path(path_type=Path), metavar="WORKDIR|CHECKPOINT")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report (WORKDIR/report), or the picture.")
@click.option("--animation", type=click.Path(dir_okay=False, path_type=Path), help="File: .gif, .png (APNG) or .webp.")
@click.option("--attention", type=click.Path(dir_okay=False, path_type=Path), help="An image to look at the model's.")
@click.option(
    "--point", "points", type=(float, float), multiple=True, metavar="X Y",
    help="With --attention: pixel whose encoder attention to show; default: the centres of the detections.",
)  # fmt: skip
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Least score.")
def plot(
    path: Path,
    out: Path | None,
    animation: Path | None,
    attention: Path | None,
    points: tuple[tuple[float, float], ...],
    threshold: float,
) -> None:
    """Draw the report of a run, a training as an animation, or a model's attention.

    The report is a folder of PNG files and index.html, one page that holds them all: losses, learning rates, AP, curves
    of precision and recall, confused classes, and the worst images. It needs the data set of the run.

    \b
    Examples:
      detr-jax plot runs/shapes
      detr-jax plot runs/shapes --animation training.webp
      detr-jax plot runs/shapes --attention image.png --out attention.png
    """
    from detr_jax.evaluation.report import animate, read_run, write_report

    if animation is not None and animation.suffix.lower() not in SUFFIXES:
        raise click.ClickException(f"--animation={animation} must end in one of {', '.join(SUFFIXES)}.")
    try:
        if attention is not None:
            written = out or Path("attention.png")
            _draw_attention(path, attention, written, points, threshold)
        elif animation is not None:
            written = animation
            config, _ = read_run(path)
            animate(path, animation, config, open_source(config, "val"))
        else:
            written = write_report(path, out or path / "report")
    except OSError as error:
        raise click.ClickException(f"{error.filename or path} cannot be written ({error.strerror}).") from None
    click.echo(f"written to {written}")


def _draw_attention(
    checkpoint: Path, file: Path, out: Path, points: tuple[tuple[float, float], ...], threshold: float
) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from PIL import Image

    from detr_jax.data.canvases import lay, place
    from detr_jax.data.images import decode
    from detr_jax.inference import Detector
    from detr_jax.models import attention_maps, normalize_images
    from detr_jax.postprocess import detections
    from detr_jax.visualization import LabelledBoxes
    from detr_jax.visualization.attention import attention_sheet

    if not file.is_file():
        raise DataError(f"--attention={file} does not exist: give an image.")
    if out.suffix.lower() not in Image.registered_extensions():
        raise DataError(f"--out={out} must end in the name of a picture format, such as .png.")
    detector = Detector.from_checkpoint(checkpoint)
    picture = decode(file, rotate=True)
    size = (picture.height, picture.width)
    placement = place(size, detector.config, detector.canvases)
    canvas = np.zeros((1, *placement.canvas, 3), np.uint8)
    lay(picture, placement, canvas[0])
    sizes = jnp.array([placement.size], jnp.int32)
    maps = jax.jit(lambda x: attention_maps(detector.model, normalize_images(x, sizes), sizes))(canvas)
    found = detections(maps.predictions.logits[-1], maps.predictions.boxes[-1], jnp.array([size], jnp.int32))
    boxes, scores, labels = (np.asarray(x[0]) for x in found)
    chosen = [i for i in np.argsort(-scores) if scores[i] >= threshold]
    items = LabelledBoxes(boxes[chosen], labels[chosen], scores[chosen])

    (height, width), stride = placement.size, detector.config.model.backbone.stride
    rows, columns = -(-height // stride), -(-width // stride)  # cells that hold image, without padding
    decoder = np.asarray(maps.decoder[0].mean(axis=0))[chosen, :rows, :columns]
    if not points:
        points = tuple((float(box[[0, 2]].mean()), float(box[[1, 3]].mean())) for box in items.boxes[:4])
    points = tuple((min(max(x, 0.0), size[1] - 1.0), min(max(y, 0.0), size[0] - 1.0)) for x, y in points)
    if maps.encoder is None:
        points, own = (), np.zeros((0, rows, columns), np.float32)
    else:
        all_cells = np.asarray(maps.encoder[0].mean(axis=0))
        own = np.array([all_cells[int(y / size[0] * height / stride), int(x / size[1] * width / stride)]
                        for x, y in points], np.float32).reshape(-1, *all_cells.shape[2:])  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    attention_sheet(np.asarray(picture), items, decoder, points, own, detector.class_names).save(out)
