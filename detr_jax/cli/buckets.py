"""`detr-jax buckets`: show the buckets of a training run and the memory that they need, before the run starts."""

import dataclasses
import math
import time
from typing import Any

import click
import jax
import numpy as np

from detr_jax.cli.configuration import config_option, read_config
from detr_jax.compilation_cache import keep_compiled_programs
from detr_jax.config import Config, check_buckets
from detr_jax.data import TrainPlan, ValPlan, open_source
from detr_jax.data.bucket_counts import images_trained, images_validated
from detr_jax.data.buckets import Bucket, train_sizes, useful_share, val_sizes
from detr_jax.printing import say
from detr_jax.training.resolve import resolve_buckets, resolve_from_data, resolve_model
from detr_jax.wording import counted


class MemorySize(click.ParamType):
    """Converts an amount of memory such as ``80GiB`` to bytes, int."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The amount in bytes. The command fails if ``value`` is not an amount of memory."""
        from detr_jax.training.memory import parse_memory

        try:
            return parse_memory(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


@click.command(
    "buckets",
    short_help="Show the buckets of a data set and their memory.",
    context_settings={"ignore_unknown_options": True},
)
@config_option
@click.option(
    "--dataset",
    help="coco, yolo, voc, labelme, tfds, shapes or an entry of data.sources. Short for --config.data.dataset.",
)
@click.option("--root", help="Folder of the data set. Short for --config.data.root.")
@click.option("--memory", is_flag=True, help="Compile the training step of each bucket and show its memory.")
@click.option("--largest-batch", is_flag=True, help="Find the largest batch whose step fits into the devices' memory.")
@click.option(
    "--device-memory", type=MemorySize(), help="For --largest-batch, such as 80GiB. By default the devices report it."
)
@click.argument("changes", nargs=-1, type=click.UNPROCESSED, metavar="[--config.FIELD=VALUE]...")
def buckets(
    config_name: str | None,
    dataset: str | None,
    root: str | None,
    memory: bool,
    largest_batch: bool,
    device_memory: int | None,
    changes: tuple[str, ...],
) -> None:
    """Show the buckets of a data set, with the share of images in each and the share of useful pixels.

    A new training run with this configuration uses the same buckets. Their number depends on the sizes of the images
    and on the length of the run. A bucket is added only if it saves more padding than its compilation costs, up to
    data.num_train_buckets and data.num_val_buckets. "useful" is the share of a bucket's pixels that belong to images.
    For training, it is measured over many random augmentations.

    --memory compiles the training step of each bucket. It does not train, and it does not allocate the memory. The
    bytes hold for the devices that JAX sees here. Other devices may need more or less.

    --largest-batch compiles the step of the largest bucket for a few batch sizes, and shows the largest one that fits.
    It is a multiple of the number of devices and of training.accumulate.

    \b
    Examples:
      detr-jax buckets --config coco --root FOLDER --config.data.num_train_buckets=16
      detr-jax buckets --config coco --root FOLDER --memory --config.training.batch_size=8
      detr-jax buckets --config coco --root FOLDER --largest-batch --config.model.remat=all
    """
    if device_memory and not largest_batch:
        raise click.UsageError("--device-memory has an effect only with --largest-batch: give both.")
    config = read_config(config_name, changes, dataset=dataset, root=root)
    config, _ = resolve_model(config, None)
    train, val = open_source(config, "train"), open_source(config, "val")
    config = resolve_from_data(config, None, train, val)
    limits, config = config.data, resolve_buckets(config, None, train, val)
    stride, size = config.model.stride, config.training.batch_size
    plan = TrainPlan(train, config.data, size, config.training.seed, stride)
    val_plan = ValPlan(val, config.data, config.evaluation.batch_size, stride)
    check_buckets(config.model, (*plan.buckets, *val_plan.buckets))

    _print_buckets(f"training, {len(train)} images", plan.buckets, train_sizes(train, config.data))
    if config.data.num_train_buckets < limits.num_train_buckets:
        _explain_fewer(limits.num_train_buckets, "num_train_buckets", images_trained(config, len(train)))
    say()
    _print_buckets(f"validation, {len(val)} images", val_plan.buckets, val_sizes(val, config.data))
    if config.data.num_val_buckets < limits.num_val_buckets:
        _explain_fewer(limits.num_val_buckets, "num_val_buckets", images_validated(config, len(val), len(train)))
    say()
    if memory or largest_batch:
        keep_compiled_programs()
        _print_memory(config, plan, train.max_objects, memory, largest_batch, device_memory)


def _print_memory(
    config: Config, plan: TrainPlan, max_objects: int, each: bool, largest_batch: bool, given: int | None
) -> None:
    """Compiles training steps: the step of each bucket if ``each``, and then the steps to find the largest batch.

    ``given`` is the memory of a device in bytes. If it is None, the devices report it.
    """
    from detr_jax.sharding import create_mesh
    from detr_jax.training.resolve import check_devices

    mesh = create_mesh()
    try:
        if each:
            check_devices(config, mesh)
            _print_memory_of_buckets(config, plan.buckets, max_objects, mesh)
        if largest_batch:
            _print_largest_batch(config, plan, max_objects, mesh, given)
    except NotImplementedError as error:
        raise click.ClickException(str(error)) from None


def _print_memory_of_buckets(config: Config, buckets: list[Bucket], max_objects: int, mesh: jax.sharding.Mesh) -> None:
    """Compiles the training step of each bucket and prints its memory."""
    from detr_jax.memory import fitting
    from detr_jax.training import memory

    say(
        f"memory of the training step on each of {mesh.size} {mesh.devices.flat[0].platform} device(s), for batches of "
        f"{config.training.batch_size} images, as compiled here:"
    )
    for bucket in buckets:
        with fitting(f"The step on the bucket {bucket[0]} x {bucket[1]}", memory.TO_NEED_LESS):
            found = memory.step_memory(config, bucket, max_objects, mesh)
        say(
            f"{bucket[0]:6} x {bucket[1]:<6} {found.total / 2**20:10.0f} MiB: {found.state / 2**20:.0f} of "
            f"state and batch, {found.temporary / 2**20:.0f} within the step"
        )


def _print_largest_batch(
    config: Config, plan: TrainPlan, max_objects: int, mesh: jax.sharding.Mesh, given: int | None
) -> None:
    """Finds the largest batch whose training step fits into the memory, on the largest bucket, and prints it."""
    from detr_jax.memory import is_out_of_memory
    from detr_jax.training import memory

    platform, unit = mesh.devices.flat[0].platform, mesh.size * config.training.accumulate
    limit = given or memory.device_memory(mesh)
    if limit is None:
        raise click.ClickException(
            f"The memory of {platform} devices is not known: give it, for example as --device-memory 80GiB."
        )
    bucket = max(plan.buckets, key=math.prod)
    say(
        f"largest batch on the bucket {bucket[0]} x {bucket[1]} within {limit / 2**30:.3g} GiB on each of "
        f"{mesh.size} {platform} device(s), in multiples of {unit}; each row is one compilation:"
    )
    say(" batch       GiB  fits  compiled in")

    def needed(units: int) -> float:
        """The memory of a step with ``units * unit`` images in bytes, infinite if the compiler refuses it."""
        started = time.monotonic()
        training = dataclasses.replace(config.training, batch_size=units * unit)
        try:
            total: float = memory.step_memory(
                dataclasses.replace(config, training=training), bucket, max_objects, mesh
            ).total
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            total = math.inf  # some compilers know their device's memory and refuse
        fits = "yes" if total <= limit else "no"
        say(f"{units * unit:6} {total / 2**30:9.4g}  {fits:4}  {time.monotonic() - started:.0f} s")
        return total

    largest = memory.largest_that_fits(needed, limit, max(1, len(plan.source) // unit)) * unit
    if not largest:
        raise click.ClickException(
            f"Not even {unit} images fit: set model.remat=all or model.dtype=bfloat16, or smaller buckets."
        )
    say(f"the largest batch that fits: --config.training.batch_size={largest}")


def _print_buckets(title: str, buckets: list[Bucket], sizes: np.ndarray) -> None:
    """Prints each bucket with its share of the images and of useful pixels. ``sizes`` is [n, 2] int in pixels."""
    holds = (np.array(buckets) >= sizes[:, None]).all(axis=-1)
    taken = np.where(holds, np.prod(buckets, axis=1), np.inf).argmin(axis=1)
    say(f"{title}: {useful_share(sizes, buckets):.1%} useful in {counted(len(buckets), 'bucket')}")
    say("  height x width     images  useful")
    for number, bucket in enumerate(buckets):
        own = sizes[taken == number]
        useful = f"{useful_share(own, [bucket]):7.1%}" if len(own) else "      -"
        say(f"{bucket[0]:8} x {bucket[1]:<8} {len(own) / len(sizes):6.1%} {useful}")


def _explain_fewer(limit: int, field: str, images: int) -> None:
    """Prints why there are fewer buckets than the configuration allows."""
    say(
        f"fewer than data.{field}={limit}: over the {images:,} images of the run, one more bucket would save less "
        "padding than its compilation costs"
    )
