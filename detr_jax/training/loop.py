"""The training loop: `train` runs from the first step, or from the newest checkpoint, to the last validation."""

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import jax
import optax
from jax.sharding import Mesh

from detr_jax.checkpoints import Checkpoints, newest_checkpoint
from detr_jax.compilation_cache import keep_compiled_programs
from detr_jax.config import Config, ConfigError, check_buckets, to_json
from detr_jax.data import DataError, batches
from detr_jax.data.batching import LoaderError
from detr_jax.distributed import is_main
from detr_jax.evaluation.coco import Metrics
from detr_jax.evaluation.detections_file import drop_snapshots
from detr_jax.evaluation.validator import Validator
from detr_jax.host_memory import keep_freed_memory
from detr_jax.memory import OutOfMemoryError, fitting, on_host
from detr_jax.sharding import Tree, create_mesh, own_rows, state_shardings
from detr_jax.structures import Batch
from detr_jax.training.best_checkpoint import BestCheckpoint
from detr_jax.training.checkpointing import restore_or_initialize, save
from detr_jax.training.compiled_step import CompiledStep
from detr_jax.training.error import TrainingError
from detr_jax.training.finiteness import TermsCheck
from detr_jax.training.initial_weights import initial_model
from detr_jax.training.memory import TO_NEED_LESS, device_memory
from detr_jax.training.optimizer import create_optimizer, learning_rates
from detr_jax.training.prefetch import Prefetch
from detr_jax.training.process_checks import check_same_config, check_same_data, create_shared_workdir
from detr_jax.training.resolve import Resolved, resolve
from detr_jax.training.run_log import OnLog, RunLog
from detr_jax.training.saving import StateSaver
from detr_jax.training.signals import STEPS_AHEAD, Interrupted, StopSignals
from detr_jax.training.state import PartitionedModel, TrainState, abstract_batch
from detr_jax.training.step import create_train_step
from detr_jax.training.summary import log_summary
from detr_jax.training.throughput import Throughput
from detr_jax.training.validation import Validation
from detr_jax.training.watchdog import HangError, Watchdog
from detr_jax.workdir import CONFIG_FILE, locked, replace_text

Terms = dict[str, jax.Array]
"""The terms of one step, each [] float32."""


def train(
    config: Config,
    workdir: str | Path,
    *,
    mesh: Mesh | None = None,
    on_log: OnLog | None = None,
    strict: bool = False,
) -> Metrics:
    """Trains a model, or resumes from the newest checkpoint in ``workdir`` if there is one.

    The workdir gets ``config.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and ``snapshots/``. The
    validations add ``detections.npz``, ``best.json`` and the link ``best``. The end adds ``predictions.png``.

    Args:
      config: the configuration. What it leaves open is taken from the checkpoint and the data.
      workdir: the folder of the run. It is created if it does not exist.
      mesh: the devices, along the axis "data" (`create_mesh`). By default all devices of all processes.
      on_log: called as ``on_log(step, numbers)`` on process 0 for each line that is added to ``metrics.jsonl``, with
        names such as "train/loss" and "val/AP". Metrics that are not defined are dropped. An exception in it ends the
        run and is raised unchanged.
      strict: end the run if the newest checkpoint is damaged. By default, it is moved to ``damaged/``, and the run
        resumes from the newest sound one.

    Returns:
      The `detr_jax.evaluation.coco.Metrics` of the last validation.

    Raises:
      ConfigError, DataError, CheckpointError, WeightsError: the configuration, data, checkpoint or weights are wrong.
      TrainingError: the loss is not finite, a data worker was killed, or something does not fit into memory.
      WorkdirError: a file of the workdir cannot be written.
      HangError: the run made no progress for ``training.hang_seconds``. If the main thread does not react to it, the
        whole process ends with exit code 75.
      Interrupted: SIGINT or SIGTERM came. Everything is saved.
    """
    keep_compiled_programs()
    keep_freed_memory()
    workdir, mesh = Path(workdir), create_mesh() if mesh is None else mesh
    with _training_errors(), ExitStack() as cleanup:
        with fitting("The start of the run", "Use a machine with more memory, or a smaller model."):
            resolved = _resolve(config, workdir, mesh)
            config, total_steps = resolved.config, resolved.total_steps
            watchdog = cleanup.enter_context(Watchdog(config.training.hang_seconds, workdir))
            model, loaded = initial_model(resolved, is_new=newest_checkpoint(workdir) is None)
            optimizer = create_optimizer(config.optimizer, total_steps, resolved.plan.steps_per_epoch)
            validator = _create_validator(resolved, model, mesh)

            create_shared_workdir(workdir)
            if is_main():
                cleanup.enter_context(locked(workdir))
            checkpoints = _open_checkpoints(resolved, workdir)
            cleanup.callback(checkpoints.close)
            state, frozen = restore_or_initialize(checkpoints, model, optimizer, config, mesh, strict=strict)
            model = model.abstract  # frees the memory of the initial weights
            start_step = _check_start(int(state.step), total_steps, workdir)

            log = RunLog(workdir, start_step, total_steps, config.training, on_log)
            cleanup.callback(log.close)
            _write_start(resolved, workdir, start_step)
            log_summary(log.say, resolved, model, mesh, start_step, loaded)
            for note in checkpoints.notes:
                log.say(note)
            best = BestCheckpoint(
                workdir, checkpoints, start_step, metric=config.evaluation.best, reset=resolved.changes_metrics
            )
            validation = Validation(validator, frozen, log, workdir, start_step, resolved, watchdog.progress)
            train_step = _create_compiled_step(resolved, model, optimizer, frozen, mesh, log)
            stream = _training_batches(resolved, mesh, start_step)
            cleanup.callback(stream.close)
            prefetch = Prefetch(stream, mesh, resolved.train_source, config.data, log.say_anywhere)
            throughput = Throughput(config.training.batch_size, config.data)
            terms_check = TermsCheck(resolved, workdir, own_rows(mesh, config.training.batch_size), log.say)
            log_line = partial(_log_line, log, resolved, terms_check, prefetch, train_step, throughput)
        save_state = StateSaver(
            checkpoints, partial(save, checkpoints, model, frozen, config), config.training.on_write_error, log.say
        )
        with StopSignals(mesh, checkpoints.folder) as stop:
            metrics = _train_steps(
                resolved,
                state,
                train_step,
                prefetch,
                throughput,
                validation,
                best,
                log_line,
                save_state,
                log,
                stop,
                watchdog,
            )
            stop.finish()
        if len(train_step):
            log.say(train_step.sentence())
        log.say(best.sentence())
        log.say(f"finished; checkpoints, metrics.jsonl and predictions.png are in {workdir}")
    return metrics


def _train_steps(
    resolved: Resolved,
    state: TrainState,
    train_step: CompiledStep,
    prefetch: Prefetch,
    throughput: Throughput,
    validation: Validation,
    best: BestCheckpoint,
    log_line: Callable[[int, list[Terms]], None],
    save_state: StateSaver,
    log: RunLog,
    stop: StopSignals,
    watchdog: Watchdog,
) -> Metrics:
    """Trains and validates until all steps are done, validations no longer improve, or a signal comes.

    Returns:
      The metrics of the last validation.
    """
    config, step, metrics = resolved.config, int(state.step), {}
    saved = step
    pending: list[Terms] = []  # terms of the steps since the last log line, on the devices
    try:
        while True:
            validation.take_snapshot(state, step)
            if resolved.validates(step):
                metrics = validation.evaluate(state, step, stop)
                with save_state.tolerant():
                    best.add(step, metrics[config.evaluation.best])
            if step == resolved.total_steps or _stops_early(config, best, step, log):
                break
            watchdog.progress(f"in step {step + 1}", slow=len(train_step) == 0)
            with fitting(f"Step {step + 1}", TO_NEED_LESS):
                began = time.monotonic()
                with stop.at_once(step):
                    batch = next(prefetch)
                received = time.monotonic()
                if batch in train_step:
                    state, terms = train_step(state, batch)
                    _wait_for_devices(terms, pending, received, throughput)
                    throughput.add(time.monotonic() - began, received - began)
                else:
                    with log.uncounted(steps=1):
                        watchdog.progress(f"while compiling step {step + 1}", slow=True)
                        with stop.during_compilation(loses_nothing=step == saved):
                            train_step.compile(state, batch)
                        watchdog.progress(f"in step {step + 1}")
                        state, terms = train_step(state, batch)
                        jax.block_until_ready(terms)
            step += 1
            pending.append(terms)
            stopping = stop.after_step()
            saves = stopping or resolved.validates(step) or step % config.training.checkpoint_every == 0
            if saves or step % config.training.log_every == 0:
                log_line(step, pending)
            if saves:
                watchdog.progress(f"while saving step {step}")
                save_state(state)
                saved = step
            if stopping:
                raise stop.interrupted(step, stopping)
        validation.draw(state, step, stop)
        watchdog.progress("at the end of the run")
        save_state.finish(state)
        log.finish()
    except (DataError, LoaderError, HangError, Interrupted):
        if step > saved and jax.process_count() == 1:  # the steps before the missing batch are saved
            if pending:
                log_line(step, pending)
            save_state(state)
        raise
    finally:
        with suppress(RuntimeError):  # a failed step leaves deleted arrays
            jax.block_until_ready(state)  # the interpreter would crash if it ended during a host callback
    return metrics


def _wait_for_devices(terms: Terms, pending: list[Terms], received: float, throughput: Throughput) -> None:
    """Keeps the host at most `STEPS_AHEAD` steps ahead, and measures the step if it began with idle devices."""
    if not pending:
        jax.block_until_ready(terms)
        throughput.step_seconds = time.monotonic() - received
    elif len(pending) >= STEPS_AHEAD:
        jax.block_until_ready(pending[-STEPS_AHEAD]["loss"])


def _stops_early(config: Config, best: BestCheckpoint, step: int, log: RunLog) -> bool:
    """Whether ``training.early_stop`` ends the run at this step. It is logged."""
    stops = 0 < config.training.early_stop <= best.validations_since
    if stops:
        log.say(f"stopping at step {step}: {best.validations_since} validations without a better {best.metric}")
    return stops


def _log_line(
    log: RunLog,
    resolved: Resolved,
    terms_check: TermsCheck,
    prefetch: Prefetch,
    train_step: CompiledStep,
    throughput: Throughput,
    step: int,
    pending: list[Terms],
) -> None:
    """Logs the mean terms of the pending steps, and clears them.

    Raises:
      TrainingError: a number is not finite.
    """
    config = resolved.config
    with fitting(f"Step {step}", TO_NEED_LESS):
        numbers = terms_check.means(on_host(pending), step)
    pending.clear()
    if config.data.on_error == "skip":
        numbers["skipped_images"] = prefetch.skipped_by_all()
    numbers |= learning_rates(config.optimizer, step, resolved.total_steps, resolved.plan.steps_per_epoch)
    numbers |= {"compile_seconds": train_step.seconds, "programs": len(train_step)}
    log.training(step, numbers)
    if warning := throughput.warning():
        log.say(warning)


def _resolve(config: Config, workdir: Path, mesh: Mesh) -> Resolved:
    """Resolves the configuration and opens the data. All processes must have the same."""
    check_same_config(config)
    resolved = resolve(config, workdir, mesh)
    check_same_data(resolved)
    return resolved


def _create_validator(resolved: Resolved, model: PartitionedModel, mesh: Mesh) -> Validator:
    config = resolved.config
    shardings = state_shardings((model.params, model.frozen), mesh, config.training.fsdp)
    validator = Validator(config, resolved.val_source, model.graphdef, mesh, shardings)
    check_buckets(config.model, validator.plan.buckets)
    return validator


def _open_checkpoints(resolved: Resolved, workdir: Path) -> Checkpoints:
    checkpoints = Checkpoints(workdir / "checkpoints", resolved.config.training.keep_checkpoints)
    checkpoints.class_names = resolved.train_source.categories
    checkpoints.category_ids = resolved.train_source.category_ids
    checkpoints.stuff_labels = getattr(resolved.train_source, "stuff_labels", ())
    return checkpoints


def _check_start(step: int, total_steps: int, workdir: Path) -> int:
    """Returns the step at which the run starts, if that is not after its end."""
    if step > total_steps:
        raise ConfigError(
            f"training.steps={total_steps} is below the {step} steps that {workdir} has done: raise it, "
            "or choose another --workdir."
        )
    return step


def _write_start(resolved: Resolved, workdir: Path, start_step: int) -> None:
    """Writes the configuration, and deletes the snapshots of steps that will be done again."""
    if is_main():
        replace_text(workdir / CONFIG_FILE, to_json(resolved.config))
        drop_snapshots(workdir, after=start_step)


def _create_compiled_step(
    resolved: Resolved,
    model: PartitionedModel,
    optimizer: optax.GradientTransformation,
    frozen: Tree,
    mesh: Mesh,
    log: RunLog,
) -> CompiledStep:
    step = create_train_step(model, optimizer, resolved.config, mesh)
    largest = max(resolved.plan.buckets, key=math.prod)
    batch = abstract_batch(resolved.config, largest, resolved.plan.source.max_objects)
    return CompiledStep(step, frozen, batch, device_memory(mesh), log.say)


def _training_batches(resolved: Resolved, mesh: Mesh, start_step: int) -> Generator[Batch, None, None]:
    """The batches from ``start_step`` to the end of the run, with the rows of this process."""
    config, size = resolved.config, resolved.config.training.batch_size
    rows = own_rows(mesh, size)
    stream = batches(resolved.plan, resolved.train_source, size, config.data, start=start_step, rows=rows)
    with closing(stream):
        yield from itertools.islice(stream, resolved.total_steps - start_step)


@contextmanager
def _training_errors() -> Iterator[None]:
    """Raises a `TrainingError` if memory runs out or a data worker is killed."""
    try:
        yield
    except LoaderError as error:
        raise TrainingError(f"{error} The same command resumes from the last checkpoint.") from None
    except OutOfMemoryError as error:
        raise TrainingError(str(error)) from error
