"""What a run tells before its first step."""

from collections.abc import Callable

import jax
from jax.sharding import Mesh

from detr_jax.config import differences
from detr_jax.config.effects import ineffective
from detr_jax.data.annotated import AnnotatedDataset
from detr_jax.evaluation.coco import has_objects
from detr_jax.matching import callbacks_may_starve
from detr_jax.training.start import LEAST_IMAGES, Start
from detr_jax.training.step import Model
from detr_jax.wording import counted


def introduce(say: Callable[[str], None], start: Start, model: Model, mesh: Mesh, step: int, started_from: str) -> None:
    """Says what is trained on what, from which step on, and what will keep it from learning.

    Args:
      step: where the run begins; above 0 where it goes on.
      started_from: what was loaded from ``training.init_from``, if anything was.
    """
    config, plan = start.config, start.plan
    parameters = sum(x.size for x in jax.tree.leaves(model.params))
    platform = mesh.devices.flat[0].platform
    say(
        f"{parameters / 1e6:.2f}M trainable parameters, {counted(len(plan.source), 'training image')}, "
        f"{counted(plan.steps_per_epoch, 'step')} an epoch, {counted(start.total_steps, 'step')}, "
        f"{mesh.size} {platform} device(s)"
    )
    say(f"buckets (height x width): {', '.join(f'{height} x {width}' for height, width in plan.buckets)}")
    if step:
        say(f"resuming at step {step}")
    for name, (old, new) in start.changed.items():
        say(f"changed since the last run: {name} from {old!r} to {new!r}")
    if config.loss.matcher == "scipy" and callbacks_may_starve(mesh):
        say(
            f"Matching on the device: with {mesh.size} simulated CPU devices, host callbacks can hang unless the "
            f"environment variable NPROC is at least {4 * mesh.size} when jax starts."
        )
    scratch = not step and not config.training.init_from
    if scratch and not config.data.generated and len(plan.source) < LEAST_IMAGES:
        say(
            f"Training from scratch on {counted(len(plan.source), 'image')}: below some {LEAST_IMAGES:,} of them, DETR "
            "hardly learns; fine-tune a trained model instead, with configs/finetune.py."
        )
    if config.model.backbone.needs_pretrained and not step and not config.training.init_from:
        say(
            "The backbone's frozen batch norm starts without pretrained weights and will hardly train: load some with "
            "training.init_from, or set model.backbone.norm=group to train from scratch."
        )
    val = start.val_source
    if not val.max_objects and not has_objects(val.ground_truth()):
        say(
            "The validation images have no objects (crowds do not count), so there is no AP or other metric: no "
            "checkpoint is chosen as the best, and training.early_stop has no effect."
        )
    settled = differences(start.given.model, config.model, "model.") | differences(
        start.given.data, config.data, "data."
    )
    if settled:
        say(f"from the checkpoint or the data: {', '.join(f'{name}={new}' for name, (_, new) in settled.items())}")
    if started_from:
        say(started_from)
    if isinstance(plan.source, AnnotatedDataset) and plan.source.origin:
        say(f"{plan.source.origin}.")
    for source in (start.train_source, start.val_source):
        if isinstance(source, AnnotatedDataset) and source.understood:
            say(f"{source.faults.where}: {source.understood}.")
        for sentence in source.faults.sentences():
            say(f"Data fault: {sentence}")
        for sentence in source.faults.note_sentences():
            say(f"Data note: {sentence}")
    for sentence in ineffective(config):
        say(sentence)
