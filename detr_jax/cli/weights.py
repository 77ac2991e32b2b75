"""`detr-jax import-weights`: convert PyTorch checkpoints into checkpoints of this package."""

import importlib.util
import sys
from pathlib import Path

import click
from absl import logging

from detr_jax.checkpoints import Checkpoints
from detr_jax.config import Config, to_json
from detr_jax.memory import fitting
from detr_jax.models.detector import abstract_model
from detr_jax.printing import say
from detr_jax.weights.downloads import download, weights_folder
from detr_jax.weights.files import TORCH_SUFFIXES, WeightsError
from detr_jax.weights.official import OFFICIAL, Official, find
from detr_jax.weights.pretrained import ImportedWeights, read_pretrained
from detr_jax.weights.trees import with_leaves


def _list_all(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        for weights in OFFICIAL:
            size = f"{weights.megabytes} MiB" if weights.megabytes else "?"
            say(f"{weights.name:44} {size:>8}  {weights.licence:13} {weights.about}", f"{'':55}{weights.address}")
        ctx.exit()


@click.command("import-weights", short_help="A checkpoint from PyTorch weights or a listed name.")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path), required=False)
@click.option("--download", "with_download", is_flag=True, help="SOURCE is a listed name. Download its file first.")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list_all, help="Show listed names.")
@click.option("--dilation", is_flag=True, help="The model is a DC5 model. Its tensors do not show this.")
@click.option(
    "--mask-padding/--no-mask-padding",
    default=True,
    show_default=True,
    help="Keep padding out of the backbone. --no-mask-padding gives the original's predictions.",
)
@click.option(
    "--num-heads", type=click.IntRange(min=1), help="Attention heads. Default: the number in the checkpoint, or else 8."
)
def import_weights(
    source: str, out: Path | None, with_download: bool, dilation: bool, mask_padding: bool, num_heads: int | None
) -> None:
    """Turn a detector trained elsewhere into a checkpoint of this package.

    SOURCE is a DETR or Deformable DETR: a .pth file of the original (or of DETR's detectron2 wrapper) or of mmdetection
    3, or a directory or file of Hugging Face. The kind is recognised automatically. Files other than .safetensors need
    the extra "torch". OUT is a new folder for inference and fine-tuning.

    With --download, SOURCE is a name that --list shows. Its file is kept in the cache folder. Without OUT, the file is
    only downloaded.

    \b
    Examples:
      detr-jax import-weights detr-r50-dc5.pth detr-r50-dc5 --dilation
      detr-jax import-weights detr-r50 detr-r50 --download
    """
    logging.set_verbosity(logging.ERROR)
    if out is None and not with_download:
        read_pretrained(source)  # reports a fault of SOURCE first, such as a name that must be downloaded
        raise click.UsageError("Missing argument 'OUT'.")
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise click.ClickException(f"{out} already exists: give a new folder.")
    path = source
    if with_download:
        listed = _listed(source)
        path = str(_download(listed))
        if out is None or listed.backbone:
            say(path)
            say(_what_next(listed, path), err=True)
            return
        dilation = dilation or listed.dilation
    assert out is not None
    with fitting(f"{path}", "Use a machine with more memory."):
        weights = read_pretrained(path, dilation=dilation, mask_padding=mask_padding, num_heads=num_heads)
    if weights.config is None:
        raise WeightsError(
            f"{source} holds only a backbone, not a detector: start a training from it with "
            "--config.training.init_from."
        )
    _write(weights, out)


def _listed(source: str) -> Official:
    """The listed weights of a name.

    Raises:
      WeightsError: the name is not listed, or its file could not be read after the download.
    """
    listed = find(source)
    if listed is None:
        names = ", ".join(weights.name for weights in OFFICIAL)
        raise WeightsError(f"--download needs a listed name, and {source} is not listed. The listed names are {names}.")
    if listed.file.endswith(TORCH_SUFFIXES) and importlib.util.find_spec("torch") is None:
        raise WeightsError(
            f"{listed.file} is a PyTorch file, and PyTorch is not installed: pip install 'detr_jax[torch]' first. "
            "Nothing was downloaded."
        )
    return listed


def _download(listed: Official) -> Path:
    """The file of listed weights, with a progress bar on a terminal."""
    kept = (weights_folder() / listed.file).is_file()
    if not kept:
        say(f"downloading {listed.address} ({listed.licence}) to {weights_folder()}", err=True)
    expected = None if listed.megabytes is None else listed.megabytes * 2**20
    with click.progressbar(length=expected or 1, label=listed.file, file=sys.stderr, hidden=kept) as bar:

        def progress(count: int, total: int | None) -> None:
            bar.length = total or bar.length
            bar.update(count)

        return download(listed, progress=progress)


def _what_next(listed: Official, path: str) -> str:
    if listed.backbone:
        return (
            f"{listed.name} is a backbone without a detector: train one from it with --config.training.init_from={path}"
        )
    return f"import it with detr-jax import-weights {listed.name} OUT --download, which does not download it again"


def _write(weights: ImportedWeights, out: Path) -> None:
    """Writes a detector as a checkpoint of this package and prints what it is."""
    assert weights.config is not None
    _, abstract = abstract_model(weights.config)
    config = Config(model=weights.config, data=weights.data)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(f"{out} cannot be created ({error.strerror}): choose another folder.") from None
    checkpoints = Checkpoints(out / "checkpoints", keep=1)
    checkpoints.class_names = weights.class_names
    checkpoints.stuff_labels = weights.stuff_labels
    try:
        checkpoints.save(0, {"params": with_leaves(abstract, weights.params)}, config)
    finally:
        checkpoints.close()
    (out / "config.json").write_text(to_json(config))

    for note in weights.notes:
        say(note)
    if weights.class_names:
        names = ", ".join(f"{label} {name}" for label, name in sorted(weights.class_names.items())[:5])
        say(f"classes: {names}{' ...' if len(weights.class_names) > 5 else ''}")
    no_object = ' and "no object"' if weights.config.num_logits > weights.config.num_classes else ""
    say(
        f"{len(weights.params)} tensors of a {weights.kind} checkpoint, {weights.config.num_classes} classes"
        f"{no_object}, written to {out}"
    )
