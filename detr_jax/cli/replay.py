"""``detr-jax replay``: repeat a step whose loss or gradient was not finite."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from detr_jax.printing import say

if TYPE_CHECKING:
    from detr_jax.training.replay import Replay

_SHOWN = 8  # parameters that are named


@click.command("replay", short_help="Repeat a step that was not finite.")
@click.argument("batch", type=click.Path(dir_okay=False, path_type=Path), metavar="WORKDIR/nonfinite/STEP.npz")
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), help="Compute the step in it. Default: that of the training."
)
def replay_command(batch: Path, dtype: str | None) -> None:
    """Repeat a step whose loss or gradient was not finite, and show what is at fault.

    A training writes the batch of such a step and prints this command. The steps since the last checkpoint are done
    again. Then the terms of the step are computed for the whole batch and for each of its images alone. Nothing in
    the workdir is changed. With --dtype=float32 you see whether bfloat16 is the cause.

    \b
    Example:
      detr-jax replay runs/coco/nonfinite/4711.npz --dtype float32
    """
    from detr_jax.training.replay import replay

    for line in _lines(replay(batch, dtype=dtype, say=say)):
        say(line)


def _lines(found: "Replay") -> Iterator[str]:
    numbers = found.whole.terms
    yield f"step {found.step}:  " + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    for image_id, alone in found.images.items():
        loss, norm = alone.terms["loss"], alone.terms["gradient_norm"]
        wrong = f"  not finite: {', '.join(alone.wrong)}" if alone.wrong else ""
        yield f"image {image_id} alone:  loss {loss:.4g}  gradient norm {norm:.4g}{wrong}"
    if found.parameters:
        yield f"These parameters are not finite before the step: {_named(found.parameters)}."
    elif found.whole.wrong:
        yield f"These terms are not finite: {', '.join(found.whole.wrong)}."
        if found.whole.parameters:
            yield f"The gradient is not finite for {_named(found.whole.parameters)}."
        at_fault = [image_id for image_id, alone in found.images.items() if alone.wrong]
        if at_fault:
            yield f"Alone, these images give values that are not finite: {', '.join(map(str, at_fault))}."
        else:
            yield "No image alone gives a value that is not finite: only the whole batch does."
    elif found.updates:
        yield f"Loss and gradient are finite. The update is not finite for {_named(found.updates)}."
    else:
        largest = max(found.images, key=lambda image_id: _rank(found.images[image_id].terms["loss"]), default=None)
        yield f"All values are finite here. The image with the largest loss is {largest}."


def _rank(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(paths[:_SHOWN]) + more
