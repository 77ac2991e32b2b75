"""``detr-jax evaluate``: the metrics of a checkpoint."""

import dataclasses
import json
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from detr_jax.cli.configuration import check_fields_named, read_config
from detr_jax.cli.output import check_writable, counted, write_text
from detr_jax.config import Config, DataConfig, check, check_buckets, current_path
from detr_jax.config.effects import without_source
from detr_jax.printing import say

if TYPE_CHECKING:
    from detr_jax.evaluation.metrics import Metrics
    from detr_jax.models import DETR


@click.command(
    "evaluate", short_help="COCO metrics of a checkpoint.", context_settings={"ignore_unknown_options": True}
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--root", help="Folder of other data; all of it is used if it has no splits. Default: the data of the training."
)
@click.option(
    "--dataset", help="coco, coco_panoptic, yolo, voc, labelme, tfds or shapes; short for --config.data.dataset."
)
@click.option(
    "--metrics",
    "entries",
    metavar="NAME,...",
    help="Compute these metrics: bbox, segm, panoptic, or entries of the training's evaluation.metrics. "
    "Default: those of the training.",
)
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the metrics here.")
@click.option("--ema/--no-ema", default=True, show_default=True, help="Use the EMA if the checkpoint has one.")
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--config.FIELD=VALUE]...")
def evaluate(
    checkpoint: Path,
    root: str | None,
    dataset: str | None,
    entries: str | None,
    file: Path | None,
    ema: bool,
    changes: tuple[str, ...],
) -> None:
    """Evaluate a checkpoint on validation images. By default the metrics are COCO's 12 and the AP of each class.

    CHECKPOINT is a checkpoint, or the workdir of a run, whose newest checkpoint is used. By default the data and all
    settings are the same as in the training, and so are the metrics. --root, --dataset and --config flags for fields
    of data and evaluation change them. The format of the folder --root is recognised unless --dataset names it.
    --json writes the metrics under their names in metrics.jsonl. A metric is null if the validation images have no
    such objects.

    \b
    Examples:
      detr-jax evaluate runs/shapes
      detr-jax evaluate detr-r50-panoptic --root COCO --dataset coco_panoptic --metrics segm,panoptic
      detr-jax evaluate detr-r50 --root COCO --json numbers.json
      detr-jax evaluate runs/voc --root FOLDER --config.data.val_split=test
    """
    from detr_jax.checkpoints import load_config

    reason = "an evaluation can only change fields of data and evaluation."
    check_fields_named(changes, ("data.", "evaluation."), reason)
    if file is not None:
        check_writable(file, "--json")
    base = load_config(checkpoint)
    check_fields_named(changes, ("data.", "evaluation."), reason, config=base)
    paths = (current_path(change[9:].partition("=")[0]) for change in changes if change.startswith("--config."))
    named = {path.removeprefix("data.") for path in paths if path.startswith("data.")}
    named |= {name for name, value in (("root", root), ("dataset", dataset)) if value is not None}
    base = dataclasses.replace(base, data=_as_trained(base.data, named))
    if entries is not None:
        base = _with_metrics(base, entries.split(","))
    config = read_config(None, changes, base=base, root=root, dataset=dataset)
    metrics, step = _metrics(checkpoint, config, ema)
    _print_metrics(metrics)
    if file is not None:
        values = {f"val/{name}": value for name, value in metrics.items()}
        write_text(file, json.dumps({**({"step": int(step)} if step.isdigit() else {}), **values}) + "\n")


def _metrics(path: Path, config: Config, ema: bool) -> tuple["Metrics", str]:
    """The metrics of a checkpoint's model, computed by the same compiled function as during a training.

    Returns:
      The metrics, and the name of the checkpoint that was read.
    """
    from absl import logging
    from flax import nnx

    from detr_jax.checkpoints import load_labels, load_model, read_newest
    from detr_jax.compilation_cache import keep_compiled_programs
    from detr_jax.data import open_source
    from detr_jax.data.annotated import AnnotatedDataset
    from detr_jax.data.labelling import unknown_classes
    from detr_jax.evaluation.validator import Validator
    from detr_jax.host_memory import keep_freed_memory
    from detr_jax.sharding import mesh_for_batch

    logging.set_verbosity(logging.ERROR)
    keep_compiled_programs()
    keep_freed_memory()
    check(config)
    trained = load_labels(path)
    source = open_source(config, "val", trained=trained)
    if isinstance(source, AnnotatedDataset) and source.origin:
        say(f"{source.origin}.", err=True)
    for sentence in (*source.faults.sentences(), *source.faults.note_sentences()):
        say(f"Data: {sentence}", err=True)
    if note := unknown_classes(source, trained):
        say(note, err=True)

    def load(checkpoint: Path) -> tuple["DETR", Path, str]:
        which = "EMA" if ema and (checkpoint / "ema").is_dir() else "parameters"
        return load_model(checkpoint, ema=ema)[0], checkpoint, which

    model, checkpoint, which = read_newest(path, load)
    say(f"{which} of {checkpoint}, {counted(len(source), 'validation image')} of {source.faults.where}", err=True)
    graph, values = nnx.split(model)
    validator = Validator(config, source, graph, mesh_for_batch(config.evaluation.batch_size))
    check_buckets(config.model, validator.plan.buckets)
    with click.progressbar(length=len(source), label="evaluating", file=sys.stderr) as bar:
        _, metrics = validator.validate((nnx.as_pure(values),), after_batch=bar.update)
    return metrics, checkpoint.name


def _print_metrics(metrics: "Metrics") -> None:
    """Print the numbers of the data set as a whole, then ``NUMBER/CLASS`` in one table per number."""
    overall = {name: value for name, value in metrics.items() if "/" not in name}
    width = max(6, *map(len, overall))
    for name, value in overall.items():
        say(f"{name:<{width}} {_number(value)}")
    by_number: dict[str, dict[str, float | None]] = {}
    for name, value in metrics.items():
        number, slash, category = name.partition("/")
        if slash:
            by_number.setdefault(number, {})[category] = value
    for number, classes in by_number.items():
        say(f"{number} of each class:")
        width = max(map(len, classes))
        for category, value in classes.items():
            say(f"  {category:<{width}}  {_number(value)}")


def _with_metrics(config: Config, entries: Sequence[str]) -> Config:
    """The configuration with these entries of ``evaluation.metrics`` only.

    Raises:
      click.ClickException: an entry is not known, or it needs a mask head and the model has none.
    """
    from detr_jax.config import CocoBox, CocoMask, PanopticQuality, logged_name

    known = {"bbox": CocoBox(), "segm": CocoMask(), "panoptic": PanopticQuality()} | config.evaluation.metrics
    wanted = {}
    for entry in map(str.strip, entries):
        if entry not in known:
            raise click.ClickException(f"--metrics: {entry!r} is not one of {', '.join(known)}.")
        wanted[entry] = known[entry]
    masks = [entry for entry, metric in wanted.items() if metric.needs_masks]
    if masks and config.model.mask_stride is None:
        raise click.ClickException(f"--metrics: {masks[0]} needs a model with a mask head, and the model has none.")
    numbers = [logged_name(entry, number) for entry, metric in wanted.items() for number in metric.numbers]
    best = config.evaluation.best if config.evaluation.best in numbers else numbers[0]
    evaluation = dataclasses.replace(config.evaluation, metrics=wanted, best=best)
    return dataclasses.replace(
        config, evaluation=evaluation, data=dataclasses.replace(config.data, masks=config.data.masks or bool(masks))
    )


def _as_trained(data: DataConfig, named: Collection[str]) -> DataConfig:
    """The data configuration of the training, without fields that do not apply if the ``named`` ones are given."""
    if "root" in named or "dataset" in named:  # other data may have another format
        return without_source(data, keep=("exif", "max_level", *(() if "root" in named else ("root",))))
    if any(name.rpartition(".")[2].startswith("val_") for name in named):
        return dataclasses.replace(data, val_share=0.0)
    return data


def _number(value: float | None) -> str:
    return "no such objects" if value is None else f"{value:.4f}"
