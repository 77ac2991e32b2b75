"""AdamW with a learning rate for the backbone, true freezing, clipping and schedules (DETR, section 4)."""

import difflib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import optax
from flax import nnx

from detr_jax.config import Config, ConfigError, OptimizerConfig


def is_trainable(config: Config) -> nnx.filterlib.Filter:
    """Filter of the parameters that are trained: no frozen path, and no backbone if its learning rate is 0.

    If ``optimizer.trained`` names paths, only these are trained.
    """
    frozen = config.frozen_paths if config.optimizer.backbone_learning_rate else (*config.frozen_paths, "backbone")

    def trains(path: tuple, _: Any) -> bool:
        return _is_trained("/".join(map(str, path)), config.optimizer.trained, frozen)

    return nnx.All(nnx.Param, trains)


def _is_trained(path: str, trained: Sequence[str], frozen: Sequence[str]) -> bool:
    chosen = not trained or any(_begins_with(path, prefix) for prefix in trained)
    return chosen and not any(_begins_with(path, prefix) for prefix in frozen)


def _begins_with(path: str, prefix: str) -> bool:
    """Whether a parameter's path begins with the segments of ``prefix``."""
    return f"{path}/".startswith(prefix.rstrip("/") + "/")


def check_parameter_names(config: Config, params: Any) -> None:
    """Checks that each frozen and each slow path names parameters of a pure tree, and that some remain trainable.

    Raises:
      ConfigError: it names the path, and similar paths that exist.
    """
    paths = [_joined(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for part in config.slow_paths:
        if not any(_contains(path, part) for path in paths if not _begins_with(path, "backbone")):
            words = sorted({word for path in paths for word in path.split("/")})
            close = difflib.get_close_matches(part, words, n=4, cutoff=0.3)
            raise ConfigError(
                f"optimizer.slow_parameters holds {part!r}, but no parameter's path outside the backbone contains it: "
                f"there is {', '.join(close or words)}."
            )
    named = [("frozen", prefix) for prefix in config.frozen_paths]
    for field, prefix in [*named, *(("trained", prefix) for prefix in config.optimizer.trained)]:
        if not any(_begins_with(path, prefix) for path in paths):
            depth = prefix.rstrip("/").count("/") + 1
            there = sorted({"/".join(path.split("/")[:depth]) for path in paths if path.count("/") >= depth - 1})
            close = difflib.get_close_matches(prefix, there, n=4, cutoff=0.3)
            raise ConfigError(
                f"optimizer.{field} holds {prefix!r}, but no parameter's path begins with it: "
                f"there is {', '.join(close or there)}."
            )
    if not any(_is_trained(path, config.optimizer.trained, config.frozen_paths) for path in paths):
        only = f" and optimizer.trained={config.optimizer.trained}" if config.optimizer.trained else ""
        freeze = "freeze" if only else "freezes"
        raise ConfigError(
            f"optimizer.frozen={config.frozen_paths}{only} {freeze} every parameter: leave some to train."
        )


def learning_rate_schedule(
    config: OptimizerConfig, peak: float, total_steps: int, steps_per_epoch: int
) -> optax.Schedule:
    """The learning rate by optimizer step: warm-up from 0, then "step", "cosine" or "constant"."""
    after_warmup = max(1, total_steps - config.warmup_steps)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, after_warmup)
    elif config.schedule == "step":
        drop = config.drop_epoch * steps_per_epoch - config.warmup_steps
        main = optax.piecewise_constant_schedule(peak, {max(drop, 0): 0.1})
    else:
        main = optax.constant_schedule(peak)
    if not config.warmup_steps:
        return main
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, main], [config.warmup_steps])


def learning_rates(config: OptimizerConfig, step: int, total_steps: int, steps_per_epoch: int) -> dict[str, float]:
    """The learning rates of optimizer step number ``step``, counted from 1, for the log."""
    peaks = {"learning_rate": config.learning_rate, "backbone_learning_rate": config.backbone_learning_rate}
    return {
        name: float(learning_rate_schedule(config, peak, total_steps, steps_per_epoch)(max(step - 1, 0)))
        for name, peak in peaks.items()
    }


def create_optimizer(config: OptimizerConfig, total_steps: int, steps_per_epoch: int) -> optax.GradientTransformation:
    """Clips the gradient of all trainable parameters together, then applies AdamW with one learning rate per group.

    ``config.slow_parameters`` are those of a resolved configuration; None is none here.

    Weight decay acts on every parameter, biases and norms included, as in facebookresearch/detr.
    """

    def adamw(peak: float) -> optax.GradientTransformation:
        schedule = learning_rate_schedule(config, peak, total_steps, steps_per_epoch)
        return optax.adamw(schedule, b1=config.beta1, b2=config.beta2, eps=1e-8, weight_decay=config.weight_decay)

    groups = {"main": adamw(config.learning_rate), "backbone": adamw(config.backbone_learning_rate)}
    if config.slow_parameters:
        groups["slow"] = adamw(config.learning_rate * config.slow_factor)
    by_group = optax.partition(groups, functools.partial(parameter_groups, slow=config.slow_parameters or ()))
    if not config.clip_norm:
        return by_group
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), by_group)


def parameter_groups(params: Any, slow: Sequence[str] = ()) -> Any:
    """The learning-rate group of each parameter of a pure tree: "backbone", "slow" or "main".

    Args:
      params: the tree.
      slow: parts of the paths of slow parameters (``optimizer.slow_parameters``).
    """

    def group(path: tuple, _: Any) -> str:
        if path[0].key == "backbone":
            return "backbone"
        return "slow" if any(_contains(_joined(path), part) for part in slow) else "main"

    return jax.tree_util.tree_map_with_path(group, params)


def _joined(path: tuple) -> str:
    return "/".join(str(part.key) for part in path)


def _contains(path: str, part: str) -> bool:
    """Whether a parameter's path contains the segments of ``part``, one after another."""
    return f"/{part.strip('/')}/" in f"/{path}/"
