"""Logs a summary of a run before its first step."""

from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from detr_jax.config import DeformableDETRConfig, differences
from detr_jax.config.effects import ineffective
from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.evaluation.coco import has_objects
from detr_jax.matching import callbacks_may_starve
from detr_jax.training.resolve import Resolved
from detr_jax.training.state import PartitionedModel
from detr_jax.wording import counted


def log_summary(
    say: Callable[[str], None], resolved: Resolved, model: PartitionedModel, mesh: Mesh, step: int, loaded: str
) -> None:
    """Logs what is trained on which data, what changed since the last run, and what may keep the model from learning.

    Args:
      say: writes a sentence to the log.
      resolved: the configuration and the data.
      model: the model; only shapes are read.
      mesh: the devices.
      step: the step at which the run starts; above 0 if it is resumed.
      loaded: the text about the weights of ``training.init_from``; empty if none were loaded.
    """
    for sentences in (
        _setup(resolved, model, mesh, step),
        _warnings(resolved, mesh, step),
        _resolved_fields(resolved),
        [loaded] if loaded else [],
        _data(resolved),
        ineffective(resolved.config),
    ):
        for sentence in sentences:
            say(sentence)


def _setup(resolved: Resolved, model: PartitionedModel, mesh: Mesh, step: int) -> Iterator[str]:
    plan = resolved.plan
    parameters = sum(x.size for x in jax.tree.leaves(model.params))
    platform = mesh.devices.flat[0].platform
    yield (
        f"{parameters / 1e6:.2f}M trainable parameters, {counted(len(plan.source), 'training image')}, "
        f"{counted(plan.steps_per_epoch, 'step')} per epoch, {counted(resolved.total_steps, 'step')}, "
        f"{mesh.size} {platform} device(s)"
    )
    yield f"buckets (height x width): {', '.join(f'{height} x {width}' for height, width in plan.buckets)}"
    if step:
        yield f"resuming at step {step}"
    for name, (old, new) in resolved.changed.items():
        yield f"changed since the last run: {name} from {old!r} to {new!r}"


def _warnings(resolved: Resolved, mesh: Mesh, step: int) -> Iterator[str]:
    config, images, val = resolved.config, len(resolved.train_source), resolved.val_source
    if config.loss.matcher == "scipy" and callbacks_may_starve(mesh):
        yield (
            f"Matching on the device: with {mesh.size} simulated CPU devices, host callbacks can hang unless the "
            f"environment variable NPROC is at least {4 * mesh.size} when jax starts."
        )
    from_scratch = not step and not config.training.init_from
    least = config.model.least_images
    if from_scratch and not config.data.generated and images < least:
        detector = type(config.model).__name__.removesuffix("Config")
        learns_from_fewer = DeformableDETRConfig.least_images < least  # the detector of the preset `small`
        other = ", or train one that learns from fewer images, with --config small" if learns_from_fewer else ""
        yield (
            f"Training from scratch on {counted(images, 'image')}: {detector} hardly learns from fewer than about "
            f"{least:,} images. Fine-tune a trained detector instead, with --config finetune{other}."
        )
    if from_scratch and config.model.backbone.needs_pretrained:
        yield (
            "The backbone's frozen batch norm starts without pretrained weights and will hardly train: load weights "
            "with training.init_from, or set model.backbone.norm=group to train from scratch."
        )
    if config.model.mask_stride is not None and not config.loss.mask_terms:
        yield (
            "The mask head is not trained, because no term of the loss is computed from masks: set "
            "loss.terms=mask_terms() and data.masks=True, or model.masks=None."
        )
    if not val.max_objects and not has_objects(val.ground_truth()):
        yield (
            "The validation images have no objects (crowds do not count), so there is no AP or other metric: no "
            "checkpoint is chosen as the best, and training.early_stop has no effect."
        )


def _resolved_fields(resolved: Resolved) -> Iterator[str]:
    given, config = resolved.given, resolved.config
    fields = differences(given.model, config.model, "model.") | differences(given.data, config.data, "data.")
    if type(given.model) is not type(config.model):
        yield f"the detector is the checkpoint's: {type(config.model).__name__.removesuffix('Config')}"
        fields = {
            name: change
            for name, change in fields.items()
            if not name.startswith("model.") or hasattr(config.model, name.split(".")[1])
        }
    if fields:
        yield f"from the checkpoint or the data: {', '.join(f'{name}={new}' for name, (_, new) in fields.items())}"


def _data(resolved: Resolved) -> Iterator[str]:
    if isinstance(resolved.train_source, AnnotatedDataset) and resolved.train_source.origin:
        yield f"{resolved.train_source.origin}."
    for source in (resolved.train_source, resolved.val_source):
        if isinstance(source, AnnotatedDataset) and source.understood:
            yield f"{source.faults.where}: {source.understood}."
        for sentence in source.faults.sentences():
            yield f"Data fault: {sentence}"
        for sentence in source.faults.note_sentences():
            yield f"Data note: {sentence}"
