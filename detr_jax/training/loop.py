"""A training run from its first step, or from its last checkpoint, to its last evaluation."""

import itertools
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from detr_jax.checkpoints import Checkpoints
from detr_jax.config import Config, ConfigError, check_canvases, differences, from_json, to_json
from detr_jax.data import DataError, TrainPlan, batches, open_source
from detr_jax.data.batching import LoaderError
from detr_jax.evaluation.stored import (
    DETECTIONS,
    SNAPSHOTS,
    StoredDetections,
    drop_snapshots,
    snapshot_steps,
    write_detections,
)
from detr_jax.evaluation.validator import Validator
from detr_jax.matching import callbacks_may_starve
from detr_jax.sharding import create_mesh, replicated
from detr_jax.training.best import Best
from detr_jax.training.feed import Feed, Pace
from detr_jax.training.log import RunLog
from detr_jax.training.optimizer import create_optimizer, learning_rates
from detr_jax.training.signals import Interrupted, StopSignals
from detr_jax.training.start import LEAST_IMAGES, read_start, settle_classes, settle_model, start_from
from detr_jax.training.step import (
    Model,
    TrainState,
    create_model,
    create_state,
    create_train_step,
)

_STEPS_AHEAD = 2  # steps that the host may run ahead of the devices; each holds a batch in their memory


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says at which step, why, and what to try."""


def train(config: Config, workdir: str | Path) -> dict[str, float]:
    """Trains a model, or goes on where an earlier run in the same workdir stopped.

    The workdir gets ``config.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``snapshots/``, with the
    validations ``detections.npz``, ``best.json`` and the link ``best`` and, at the end, ``predictions.png``.

    Returns:
      The metrics of the last validation, by the names of `detr_jax.evaluation.coco.METRICS`.

    Raises:
      ConfigError, DataError, CheckpointError, WeightsError: something given does not fit.
      TrainingError: the loss is not finite, or a process that loads data was killed.
      Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    workdir = Path(workdir)
    mesh = create_mesh()
    previous, given = _previous_config(workdir), config
    config, weights = settle_model(config, previous)
    check_devices(config, mesh)
    train_source, val_source = open_source(config, "train"), open_source(config, "val")
    config = settle_classes(config, train_source, val_source)
    changed = _changes(previous, config, workdir) if previous else {}

    batch_size = config.training.batch_size
    plan = TrainPlan(train_source, config.data, batch_size, config.training.seed, config.model.backbone.stride)
    check_canvases(config.model, plan.buckets)
    total_steps = config.training.steps or (config.training.epochs or 0) * plan.steps_per_epoch

    model = create_model(config)
    started_from = ""
    if config.training.init_from and not _has_checkpoint(workdir):
        model, started_from = start_from(model, weights or read_start(config), config)
    optimizer = create_optimizer(config.optimizer, total_steps, plan.steps_per_epoch)
    state = create_state(model, optimizer, config, mesh)
    frozen = jax.device_put(model.frozen, replicated(mesh))
    train_step = create_train_step(model, optimizer, config, mesh)
    validator = Validator(config, val_source, model.graph, mesh)
    check_canvases(config.model, validator.plan.buckets)

    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--workdir={workdir} cannot be made ({error.strerror}): choose another folder.") from None
    checkpoints = Checkpoints(workdir / "checkpoints", config.training.keep_checkpoints)
    checkpoints.class_names = train_source.categories
    if checkpoints.latest_step is not None:
        state, frozen = _restore(checkpoints, model, state, frozen)
    (workdir / "config.json").write_text(to_json(config))
    step = int(state.step)
    if step > total_steps:
        raise ConfigError(
            f"training.steps={total_steps} is below the {step} steps that {workdir} has done: raise it, or choose "
            "another --workdir."
        )

    drop_snapshots(workdir, after=step)
    log = RunLog(workdir, step, total_steps, batch_size)
    _introduce(log, config, mesh, plan, model, step, total_steps, changed)
    if settled := differences(given.model, config.model, "model."):
        log.say(f"from the checkpoint or the data: {', '.join(f'{name}={new}' for name, (_, new) in settled.items())}")
    if started_from:
        log.say(started_from)
    for source in (train_source, val_source):
        for sentence in source.faults.sentences():
            log.say(f"Data fault: {sentence}")

    every = config.evaluation.every_epochs * plan.steps_per_epoch
    stale = any(name.startswith(("data.", "evaluation.", "model.")) for name in changed)
    best = Best(workdir, checkpoints, step, anew=stale)

    def validates(step: int) -> bool:
        return step == total_steps or bool(every and step and step % every == 0)

    pictured = snapshot_steps(total_steps, config.evaluation.snapshots)

    def take_snapshot() -> None:
        """Keeps what the model of now finds in the first validation images."""
        if step in pictured and not (path := workdir / SNAPSHOTS / f"{step}.npz").exists():
            with log.uncounted():
                found = validator.snapshot((state.evaluated, frozen), step)
                _store(path, found, log)

    metrics: dict[str, float] = {}
    pending: list[dict[str, jax.Array]] = []
    canvases: set[tuple[int, ...]] = set()
    planned = batches(plan, train_source, batch_size, config.data, start=step)
    feed = Feed(itertools.islice(planned, total_steps - step), mesh, train_source, config.data, log.say)
    pace = Pace(batch_size, config.data)

    def line(step: int) -> None:
        """A line of the log, after a check that all losses since the last are finite."""
        terms = _finite_means(pending, step)
        pending.clear()
        if config.data.on_error == "skip":
            terms["skipped_images"] = feed.skipped
        terms |= learning_rates(config.optimizer, step, total_steps, plan.steps_per_epoch)
        log.training(step, terms)

    try:
        with StopSignals() as stop:
            while True:
                take_snapshot()
                if validates(step):
                    metrics = {} if stale else log.validation_at(step) or {}
                    if metrics:
                        log.say_validation(step, metrics)
                    else:
                        with log.uncounted(), stop.at_once(step):
                            found = validator.detect((state.evaluated, frozen), step)
                            metrics = validator.judge(found)
                            _store(workdir / DETECTIONS, found, log)
                        log.validation(step, metrics)
                    best.add(step, metrics["AP"])
                if 0 < config.training.early_stop <= best.since and step < total_steps:
                    log.say(f"stopping at step {step}: {best.since} validations without a better AP")
                    break
                if step == total_steps:
                    break

                began = time.monotonic()
                try:
                    batch = next(feed)
                except (DataError, LoaderError):
                    if pending:  # what was learned since the last checkpoint is not lost with the data
                        line(step)
                        _save(checkpoints, model, state, frozen, config)
                    raise
                received = time.monotonic()
                canvas = batch.images.shape[1:3]
                known = canvas in canvases
                if known:
                    state, terms = train_step(state, frozen, batch)
                    if not pending:  # the devices were idle
                        jax.block_until_ready(terms)
                        pace.alone = time.monotonic() - received
                else:
                    canvases.add(canvas)
                    with log.uncounted(steps=1):
                        started = time.monotonic()
                        state, terms = jax.block_until_ready(train_step(state, frozen, batch))
                        log.say(f"compiled for canvas {canvas[0]} x {canvas[1]} in {time.monotonic() - started:.0f} s")
                step += 1
                pending.append(terms)
                if len(pending) > _STEPS_AHEAD:
                    jax.block_until_ready(pending[-1 - _STEPS_AHEAD]["loss"])
                if known:
                    pace.add(time.monotonic() - began, received - began)

                stopping = stop.received
                save = bool(stopping) or validates(step) or step % config.training.checkpoint_every == 0
                if save or step % config.training.log_every == 0:
                    line(step)
                    if slow := pace.sentence():
                        log.say(slow)
                if save:
                    _save(checkpoints, model, state, frozen, config)
                if stopping:
                    raise Interrupted(step, stopping)
            with stop.at_once(step):
                validator.draw((state.evaluated, frozen), workdir / "predictions.png")
            log.say(best.sentence())
            log.say(f"finished; checkpoints, metrics.jsonl and predictions.png are in {workdir}")
    except LoaderError as error:
        raise TrainingError(f"{error} The same command goes on from the last checkpoint.") from None
    finally:
        with suppress(RuntimeError):  # what a failed step leaves behind
            jax.block_until_ready(state)  # leaving with a host callback in flight would crash the interpreter
        planned.close()
        checkpoints.close()
        log.close()
    return metrics


def check_devices(config: Config, mesh: Mesh) -> None:
    for name, size, parts in (
        ("training.batch_size", config.training.batch_size, config.training.accumulate),
        ("evaluation.batch_size", config.evaluation.batch_size, 1),
    ):
        if size % (mesh.size * parts):
            whole = f"{mesh.size} devices" + (f" x training.accumulate={parts}" if parts > 1 else "")
            raise ConfigError(
                f"{name}={size} cannot be shared out over {whole}: use a multiple of {mesh.size * parts}."
            )


def _previous_config(workdir: Path) -> Config | None:
    """The configuration of an earlier run in this workdir, if it has left a checkpoint."""
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file: give a folder.")
    path = workdir / "config.json"
    if not path.exists() or not _has_checkpoint(workdir):
        return None
    try:
        return from_json(path.read_text())
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged ({error}) Take it away to go on with the configuration given.") from None


def _changes(previous: Config, config: Config, workdir: Path) -> dict[str, tuple[Any, Any]]:
    """Fields that changed since an earlier run in this workdir; refuses those that its checkpoints cannot follow."""
    changed = differences(previous, config)
    for name, (old, new) in changed.items():
        if name.startswith("model.") and name not in ("model.dropout", "model.dtype", "model.remat"):
            raise ConfigError(
                f"{name} was {old!r} when {workdir} was trained and is {new!r} now: "
                "set it back, or choose another --workdir."
            )
    return changed


def _has_checkpoint(workdir: Path) -> bool:
    return any(child.name.isdigit() for child in (workdir / "checkpoints").glob("*"))


def _introduce(
    log: RunLog,
    config: Config,
    mesh: Mesh,
    plan: TrainPlan,
    model: Model,
    step: int,
    total_steps: int,
    changed: dict[str, tuple[Any, Any]],
) -> None:
    parameters = sum(x.size for x in jax.tree.leaves(model.params))
    platform = mesh.devices.flat[0].platform
    log.say(
        f"{parameters / 1e6:.2f}M trainable parameters, {len(plan.source)} training images, "
        f"{plan.steps_per_epoch} steps an epoch, {total_steps} steps, {mesh.size} {platform} device(s)"
    )
    log.say(f"canvases (height x width): {', '.join(f'{height} x {width}' for height, width in plan.buckets)}")
    if step:
        log.say(f"resuming at step {step}")
    for name, (old, new) in changed.items():
        log.say(f"changed since the last run: {name} from {old!r} to {new!r}")
    if config.loss.matcher == "scipy" and callbacks_may_starve(mesh):
        log.say(
            f"Matching on the device: with {mesh.size} simulated CPU devices, host callbacks can hang unless the "
            f"environment variable NPROC is at least {4 * mesh.size} when jax starts."
        )
    scratch = not step and not config.training.init_from
    if scratch and config.data.dataset != "shapes" and len(plan.source) < LEAST_IMAGES:
        log.say(
            f"Training from scratch on {len(plan.source)} images: below some {LEAST_IMAGES:,} of them, DETR hardly "
            "learns; fine-tune a trained model instead, with configs/finetune.py."
        )
    if config.model.backbone.norm == "frozen_batch" and not step and not config.training.init_from:
        log.say(
            "The backbone's frozen batch norm starts without pretrained weights and will hardly train: load some with "
            "training.init_from, or set model.backbone.norm=group to train from scratch."
        )


def _restore(checkpoints: Checkpoints, model: Model, state: TrainState, frozen: Any) -> tuple[TrainState, Any]:
    step = checkpoints.latest_step
    assert step is not None
    targets = {"params": model.whole(state.params, frozen), "optimizer": state.optimizer}
    if state.ema is not None:
        targets["ema"] = model.whole(state.ema, frozen)
    parts = checkpoints.restore(step, targets)
    params, frozen = model.split(parts["params"])
    ema = None if state.ema is None else model.split(parts["ema"])[0]
    return TrainState(jax.device_put(np.int32(step), state.step.sharding), params, parts["optimizer"], ema), frozen


def _save(checkpoints: Checkpoints, model: Model, state: TrainState, frozen: Any, config: Config) -> None:
    if checkpoints.latest_step == int(state.step):
        return
    trees = {"params": model.whole(state.params, frozen), "optimizer": state.optimizer}
    if state.ema is not None:
        trees["ema"] = model.whole(state.ema, frozen)
    checkpoints.save(int(state.step), trees, config)


def _store(path: Path, found: StoredDetections, log: RunLog) -> None:
    """Writes detections for pictures and reports, which a run can do without."""
    try:
        write_detections(path, found)
    except OSError as error:
        log.say(f"{path} could not be written ({error.strerror}): pictures and reports of this run will lack it.")


def _finite_means(pending: list[dict[str, jax.Array]], step: int) -> dict[str, float]:
    """Means of the terms of the steps up to ``step``, after a check that every loss is a finite number."""
    values = jax.device_get(pending)
    for i, terms in enumerate(values):
        if not np.isfinite(terms["loss"]):
            at = step - len(values) + i + 1
            raise TrainingError(
                f"The loss is {terms['loss']} at step {at}: lower optimizer.learning_rate, add "
                "optimizer.warmup_steps, or train in float32; the last checkpoint is from before."
            )
    return {name: float(np.mean([terms[name] for terms in values])) for name in values[0]}
