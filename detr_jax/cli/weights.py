"""Weights of other projects."""

from pathlib import Path

import click
from absl import logging

from detr_jax.checkpoints import Checkpoints
from detr_jax.config import Config, to_json
from detr_jax.memory import fitting
from detr_jax.models.detr import abstract_model
from detr_jax.weights.files import WeightsError
from detr_jax.weights.pretrained import read_pretrained
from detr_jax.weights.trees import with_leaves


@click.command("import-weights", short_help="A checkpoint from PyTorch weights.")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--dilation", is_flag=True, help="The model is a DC5 one, which its tensors do not show.")
@click.option(
    "--mask-padding/--no-mask-padding",
    default=True,
    show_default=True,
    help="Keep padding out of the backbone; without, a padded batch is answered as the original answers it.",
)
@click.option("--num-heads", type=click.IntRange(min=1), help="Attention heads, where the checkpoint does not tell: 8.")
def import_weights(source: Path, out: Path, dilation: bool, mask_padding: bool, num_heads: int | None) -> None:
    """Turn a detector trained elsewhere into a checkpoint of this package.

    SOURCE is a .pth file of the original (or of its detectron2 wrapper) or of mmdetection 3, or a directory or file
    of Hugging Face; the kind is recognised by itself. Files other than .safetensors need the extra "torch". OUT is a
    new folder, ready for inference and for fine-tuning.

    \b
    Example:
      detr-jax import-weights detr-r50-dc5.pth detr-r50-dc5 --dilation
    """
    logging.set_verbosity(logging.ERROR)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.ClickException(f"{out} exists already: give a new folder.")
    with fitting(f"{source}", "Use a machine with more memory."):
        weights = read_pretrained(source, dilation=dilation, mask_padding=mask_padding, num_heads=num_heads)
    if weights.config is None:
        raise WeightsError(
            f"{source} holds a backbone alone, not a detector: start a training from it with "
            "--config.training.init_from."
        )
    _, abstract = abstract_model(weights.config)
    config = Config(model=weights.config)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"{out} cannot be made ({error.strerror}): choose another folder.") from None
    checkpoints = Checkpoints(out / "checkpoints", keep=1)
    checkpoints.class_names = weights.class_names
    try:
        checkpoints.save(0, {"params": with_leaves(abstract, weights.params)}, config)
    finally:
        checkpoints.close()
    (out / "config.json").write_text(to_json(config))

    for note in weights.notes:
        click.echo(note)
    if weights.class_names:
        names = ", ".join(f"{label} {name}" for label, name in sorted(weights.class_names.items())[:5])
        click.echo(f"classes: {names}{' ...' if len(weights.class_names) > 5 else ''}")
    click.echo(
        f"{len(weights.params)} tensors of a {weights.kind} checkpoint, {weights.config.num_classes} classes and "
        f'"no object", written to {out}'
    )
