"""A training run from its first step, or from its last checkpoint, to its last evaluation."""

import itertools
import math
import time
import zlib
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from detr_jax.checkpoints import Checkpoints
from detr_jax.compilation_cache import keep_compiled_programs
from detr_jax.config import Config, ConfigError, check_buckets, to_json
from detr_jax.data import DataError, batches
from detr_jax.data.batching import LoaderError
from detr_jax.distributed import gathered, is_main, wait_for_all
from detr_jax.evaluation.coco import Metrics
from detr_jax.evaluation.detections_file import (
    DETECTIONS,
    SNAPSHOTS,
    StoredDetections,
    drop_snapshots,
    snapshot_steps,
    write_detections,
)
from detr_jax.evaluation.validator import Validator
from detr_jax.host_memory import keep_freed_memory
from detr_jax.memory import OutOfMemoryError, arrays_text, does_not_fit, fitting, is_out_of_memory, on_host
from detr_jax.sharding import create_mesh, own_rows, shard, state_shardings
from detr_jax.structures import BatchInputs
from detr_jax.training.best import Best
from detr_jax.training.feed import Feed, Pace
from detr_jax.training.introduction import introduce
from detr_jax.training.log import RunLog
from detr_jax.training.memory import TO_NEED_LESS, StepMemory, device_memory, memory_sentence
from detr_jax.training.optimizer import create_optimizer, learning_rates
from detr_jax.training.programs import StepPrograms
from detr_jax.training.saving import has_checkpoint, restore, save
from detr_jax.training.signals import STEPS_AHEAD, Interrupted, StopSignals
from detr_jax.training.start import Start, prepare, read_start, start_from
from detr_jax.training.step import (
    create_state,
    create_train_step,
    outline_batch,
    outline_model,
    outline_state,
    with_initial_values,
)

_SMALLER_STATE = (
    "Make the model smaller (model.num_classes, model.num_queries, model.hidden_dim), set training.ema_decay=0, or "
    "share the state out over several devices with training.fsdp=True."
)


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says at which step, why, and what to try."""


def train(config: Config, workdir: str | Path) -> Metrics:
    """Trains a model, or goes on where an earlier run in the same workdir stopped.

    The workdir gets ``config.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``snapshots/``, with the
    validations ``detections.npz``, ``best.json`` and the link ``best`` and, at the end, ``predictions.png``.

    Returns:
      The `detr_jax.evaluation.coco.Metrics` of the last validation.

    Raises:
      ConfigError, DataError, CheckpointError, WeightsError: something given does not fit.
      TrainingError: the loss is not finite, a process that loads data was killed, or something does not fit into
        memory.
      Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    keep_compiled_programs()
    keep_freed_memory()
    workdir, mesh = Path(workdir), create_mesh()
    _check_same(config)
    try:
        with fitting("The start of the run", "Use a machine with more memory, or a smaller model."):
            start = prepare(config, workdir, mesh)
            _check_same_data(start)
            run = Run(start, workdir, mesh)
    except OutOfMemoryError as error:
        raise TrainingError(str(error)) from error
    try:
        with StopSignals(mesh) as stop:
            run.to_the_end(stop)
    except LoaderError as error:
        raise TrainingError(f"{error} The same command goes on from the last checkpoint.") from None
    except OutOfMemoryError as error:
        raise TrainingError(str(error)) from error
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(does_not_fit(f"Step {run.step + 1}", TO_NEED_LESS, error)) from error
    finally:
        run.close()
    return run.metrics


class Run:
    """A run with everything that it holds open: model and state, stream of batches, checkpoints, log."""

    def __init__(self, start: Start, workdir: Path, mesh: Mesh):
        """Makes the model, or takes it from the workdir, and says what will be trained; writes nothing if it raises.

        Raises:
          ConfigError, CheckpointError, DataError, WeightsError: something does not fit.
        """
        config = start.config
        self.workdir, self.config, self.plan, self.total_steps = workdir, config, start.plan, start.total_steps
        self.metrics: Metrics = {}
        """Of the last validation."""
        self._mesh = mesh
        model, started_from = outline_model(config), ""
        if config.training.init_from and not has_checkpoint(workdir):
            weights = start.weights or read_start(config)
            model, started_from = start_from(model, weights, config, start.train_source.categories)
        self._model = model.structure
        optimizer = create_optimizer(config.optimizer, self.total_steps, self.plan.steps_per_epoch)
        self._train_step = StepPrograms(create_train_step(self._model, optimizer, config, mesh))
        where = state_shardings((self._model.params, self._model.frozen), mesh, config.training.fsdp)
        self._validator = Validator(config, start.val_source, model.graph, mesh, where)
        check_buckets(config.model, self._validator.plan.buckets)

        try:
            workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # what `check_workdir` could not foresee
            raise ConfigError(
                f"--workdir={workdir} cannot be made ({error.strerror}): choose another folder."
            ) from None
        _check_shared(workdir)
        self._checkpoints = Checkpoints(workdir / "checkpoints", config.training.keep_checkpoints)
        self._checkpoints.class_names = start.train_source.categories
        self._checkpoints.category_ids = start.train_source.category_ids
        state = arrays_text({"state": outline_state(model, optimizer, config), "frozen": self._model.frozen})
        with fitting(f"The state of the training (weights, optimiser, moving average: {state})", _SMALLER_STATE):
            if self._checkpoints.latest_step is None:
                model = with_initial_values(model, config)
                self._state = create_state(model, optimizer, config, mesh)
                self._frozen = shard(model.frozen, where[1])
            else:
                self._state, self._frozen = restore(self._checkpoints, model, optimizer, config, mesh)
        del model  # its values are in the state
        self.step = int(self._state.step)
        """Optimiser steps done."""
        if self.step > self.total_steps:
            raise ConfigError(
                f"training.steps={self.total_steps} is below the {self.step} steps that {workdir} has done: raise it, "
                "or choose another --workdir."
            )

        self._log = RunLog(workdir, self.step, self.total_steps, config.training.batch_size)
        if is_main():
            (workdir / "config.json").write_text(to_json(config))
            drop_snapshots(workdir, after=self.step)
        introduce(self._log.say, start, self._model, mesh, self.step, started_from)
        self._stale = any(name.startswith(("data.", "evaluation.", "model.")) for name in start.changed)
        self._best = Best(workdir, self._checkpoints, self.step, anew=self._stale)
        self._pictured = snapshot_steps(self.total_steps, config.evaluation.snapshots)
        if (workdir / SNAPSHOTS / f"{self.step}.npz").exists():
            self._pictured -= {self.step}
        batch_size = config.training.batch_size
        rows = own_rows(mesh, batch_size)
        self._stream = batches(self.plan, start.train_source, batch_size, config.data, start=self.step, rows=rows)
        planned = itertools.islice(self._stream, self.total_steps - self.step)
        self._feed = Feed(planned, mesh, start.train_source, config.data, self._log.say_anywhere)
        self._pace = Pace(batch_size, config.data)
        self._same_said = False
        self._pending: list[dict[str, jax.Array]] = []  # terms of the steps since the last line of the log

    def to_the_end(self, stop: StopSignals) -> None:
        """Trains and validates until all steps are done, validations no longer improve, or a signal comes.

        Raises:
          Interrupted: a signal came; everything is saved.
          DataError, LoaderError: a batch cannot be had; what was learned up to it is saved.
          TrainingError: the loss is not finite.
        """
        while True:
            self._take_snapshot()
            if self._validates():
                self._validate(stop)
            if 0 < self.config.training.early_stop <= self._best.since and self.step < self.total_steps:
                self._log.say(f"stopping at step {self.step}: {self._best.since} validations without a better AP")
                break
            if self.step == self.total_steps:
                break
            self._train()
            stopping = stop.after_step()
            saves = stopping or self._validates() or self.step % self.config.training.checkpoint_every == 0
            if saves or self.step % self.config.training.log_every == 0:
                self._line()
                if slow := self._pace.sentence():
                    self._log.say(slow)
            if saves:
                self._save()
            if stopping:
                raise Interrupted(self.step, stopping)
        with stop.at_once(self.step):
            self._validator.draw(self._values, self.workdir / "predictions.png")
        if len(self._train_step):
            self._log.say(self._train_step.sentence())
        self._log.say(self._best.sentence())
        self._log.say(f"finished; checkpoints, metrics.jsonl and predictions.png are in {self.workdir}")

    def close(self) -> None:
        """Waits for what is on the way, and closes everything."""
        with suppress(RuntimeError):  # what a failed step leaves behind
            jax.block_until_ready(self._state)  # leaving with a host callback in flight would crash the interpreter
        self._stream.close()
        self._checkpoints.close()
        self._log.close()

    @property
    def _values(self) -> tuple:
        """What is validated: the model's values as they are now."""
        return self._state.evaluated, self._frozen

    def _train(self) -> None:
        """One step."""
        began = time.monotonic()
        try:
            batch = next(self._feed)
        except (DataError, LoaderError):
            if self._pending and not self._mesh.is_multi_process:  # what was learned is not lost with the data
                self._line()
                self._save()
            raise
        received = time.monotonic()
        known = batch in self._train_step
        terms = self._step_of_known_bucket(batch, received) if known else self._step_with_compilation(batch)
        self.step += 1
        self._pending.append(terms)
        if len(self._pending) > STEPS_AHEAD:
            jax.block_until_ready(self._pending[-1 - STEPS_AHEAD]["loss"])
        if known:
            self._pace.add(time.monotonic() - began, received - began)

    def _step_of_known_bucket(self, batch: BatchInputs, received: float) -> dict[str, jax.Array]:
        self._state, terms = self._train_step(self._state, self._frozen, batch)
        if not self._pending:  # the devices were idle
            jax.block_until_ready(terms)
            self._pace.alone = time.monotonic() - received
        return terms

    def _step_with_compilation(self, batch: BatchInputs) -> dict[str, jax.Array]:
        with self._log.uncounted(steps=1):
            if not len(self._train_step):
                bucket = max(self.plan.buckets, key=math.prod)
                largest = outline_batch(self.config, bucket, self.plan.source.max_objects)
                if memory := self._compile(largest):
                    self._log.say(memory_sentence(memory, bucket, device_memory(self._mesh)))
            if batch not in self._train_step:
                self._compile(batch)
            self._state, terms = jax.block_until_ready(self._train_step(self._state, self._frozen, batch))
        return terms

    def _compile(self, batch: BatchInputs) -> StepMemory | None:
        seconds, memory = self._train_step.compile(self._state, self._frozen, batch)
        height, width = batch.images.shape[1:3]
        self._log.say(f"compiled for bucket {height} x {width} in {seconds:.0f} s")
        return memory

    def _validates(self) -> bool:
        """Whether a validation belongs to this step."""
        every = self.config.evaluation.every_epochs * self.plan.steps_per_epoch
        return self.step == self.total_steps or bool(every and self.step and self.step % every == 0)

    def _validate(self, stop: StopSignals) -> None:
        """Validates, unless that was done before the run was stopped here."""
        self.metrics = {} if self._stale else self._log.validation_at(self.step) or {}
        if self.metrics:
            self._log.say_validation(self.step, self.metrics)
        else:
            with self._log.uncounted(), stop.at_once(self.step) as check:
                found = self._validator.detect(self._values, self.step, lambda images: check())
                self.metrics = self._validator.judge(found)
                self._store(self.workdir / DETECTIONS, found)
            self._log.validation(self.step, self.metrics)
            if not self._same_said and (sentence := self._validator.sameness(found)):
                self._log.say(sentence)
                self._same_said = True
        self._best.add(self.step, self.metrics["AP"])

    def _take_snapshot(self) -> None:
        """Keeps what the model of now finds in the first validation images, at the steps for that."""
        if self.step in self._pictured:
            with self._log.uncounted():
                found = self._validator.snapshot(self._values, self.step)
                self._store(self.workdir / SNAPSHOTS / f"{self.step}.npz", found)

    def _store(self, path: Path, found: StoredDetections) -> None:
        """Writes detections for pictures and reports, which a run can do without."""
        if not is_main():
            return
        try:
            write_detections(path, found, self._validator.source.category_ids)
        except OSError as error:
            self._log.say(f"{path} could not be written ({error.strerror}): pictures and reports will lack it.")

    def _line(self) -> None:
        """A line of the log, after a check that all losses since the last are finite."""
        terms = _finite_means(self._pending, self.step)
        self._pending.clear()
        if self.config.data.on_error == "skip":
            terms["skipped_images"] = self._feed.skipped_by_all()
        terms |= learning_rates(self.config.optimizer, self.step, self.total_steps, self.plan.steps_per_epoch)
        terms |= {"compile_seconds": self._train_step.seconds, "programs": len(self._train_step)}
        self._log.training(self.step, terms)

    def _save(self) -> None:
        save(self._checkpoints, self._model, self._state, self._frozen, self.config)


def _check_same(config: Config) -> None:
    """Checks that all processes were given the same."""
    if other := _other_process(to_json(config).encode()):
        raise ConfigError(f"Process {other} was given another configuration than process 0: give all the same.")


def _check_same_data(start: Start) -> None:
    """Checks that all processes found the same images, from which each plans the whole batches."""
    content = repr(start.plan.buckets).encode()
    for source in (start.train_source, start.val_source):
        content += (
            np.array(source.image_ids).tobytes() + source.sizes.tobytes() + bytes(str(source.max_objects), "ascii")
        )
    if other := _other_process(content):
        raise DataError(f"Process {other} found other images than process 0: give all hosts the same data.")


def _other_process(content: bytes) -> int | None:
    """The first process that has other content than process 0; None where all have the same."""
    sums = gathered(zlib.crc32(content))
    return next(iter(np.flatnonzero(sums != sums[0]).tolist()), None)


def _check_shared(workdir: Path) -> None:
    """Checks that all processes see the same workdir."""
    if jax.process_count() == 1:
        return
    token = workdir / ".processes"
    if is_main():
        token.touch()
    wait_for_all("the token was written")
    sees = gathered(token.exists())
    if is_main():
        token.unlink(missing_ok=True)
    if not sees.all():
        raise ConfigError(
            f"--workdir={workdir} is not the same folder for process {int(np.argmin(sees))} as for process 0: give one "
            "on a file system that all hosts share."
        )


def _finite_means(pending: list[dict[str, jax.Array]], step: int) -> dict[str, float]:
    """Means of the terms of the steps up to ``step``, after a check that every loss is a finite number."""
    values = on_host(pending)
    for i, terms in enumerate(values):
        if not np.isfinite(terms["loss"]):
            at = step - len(values) + i + 1
            raise TrainingError(
                f"The loss is {terms['loss']} at step {at}: lower optimizer.learning_rate, add "
                "optimizer.warmup_steps, or train in float32; the last checkpoint is from before."
            )
    return {name: float(np.mean([terms[name] for terms in values])) for name in values[0]}
