import jax
import numpy as np
import optax
import pytest
from flax import nnx

from detr_jax.config import Config, ConfigError, OptimizerConfig
from detr_jax.models import DETR
from detr_jax.testing import tiny_config
from detr_jax.training.optimizer import create_optimizer, is_trainable, learning_rate_schedule, parameter_groups
from detr_jax.training.state import abstract_model


def _numpy_adamw(params, gradients, rates, config):
    """AdamW from its paper (Loshchilov and Hutter, 2019, algorithm 2), after clipping by the global norm."""
    first = {name: np.zeros_like(p) for name, p in params.items()}
    second = {name: np.zeros_like(p) for name, p in params.items()}
    for t, gradient in enumerate(gradients, 1):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        factor = min(1.0, config.clip_norm / norm)
        for name, p in params.items():
            g = gradient[name] * factor
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
            m = first[name] / (1 - config.beta1**t)
            v = second[name] / (1 - config.beta2**t)
            params[name] = p - rates[name] * (m / (np.sqrt(v) + 1e-8) + config.weight_decay * p)
    return params


def test_updates_equal_adamw_with_a_rate_per_group_and_clipping(rng):
    config = OptimizerConfig(
        learning_rate=1e-2,
        backbone_learning_rate=1e-3,
        schedule="constant",
        weight_decay=0.1,
        slow_parameters=("sampling_offsets",),
        slow_factor=0.2,
    )
    params = {"backbone": rng.normal(size=(4, 3)), "heads": rng.normal(size=5), "sampling_offsets": rng.normal(size=6)}
    gradients = [
        {name: rng.normal(size=p.shape) * 10 ** rng.uniform(-3, 1) for name, p in params.items()} for _ in range(6)
    ]
    as_tree = lambda values: {name: {"w": np.float32(value)} for name, value in values.items()}  # noqa: E731
    optimizer = create_optimizer(config, total_steps=6, steps_per_epoch=1)
    tree = as_tree(params)
    state = optimizer.init(tree)
    for gradient in gradients:
        updates, state = optimizer.update(as_tree(gradient), state, tree)
        tree = optax.apply_updates(tree, updates)
    rates = {"backbone": 1e-3, "heads": 1e-2, "sampling_offsets": 2e-3}
    expected = _numpy_adamw(dict(params), gradients, rates, config)
    for name in params:
        np.testing.assert_allclose(tree[name]["w"], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"schedule": "constant"}, {0: 1.0, 99: 1.0}),
        ({"schedule": "step", "drop_epoch": 4}, {0: 1.0, 39: 1.0, 40: 0.1, 99: 0.1}),
        ({"schedule": "step", "drop_epoch": 4, "warmup_steps": 10}, {0: 0.0, 5: 0.5, 10: 1.0, 39: 1.0, 40: 0.1}),
        ({"schedule": "cosine"}, {0: 1.0, 50: 0.5, 100: 0.0}),
        ({"schedule": "cosine", "warmup_steps": 20}, {10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0}),
    ],
)
def test_schedules(fields, expected):
    schedule = learning_rate_schedule(OptimizerConfig(**fields), 1.0, total_steps=100, steps_per_epoch=10)
    for step, value in expected.items():
        assert float(schedule(step)) == pytest.approx(value, abs=1e-6), step


@pytest.mark.parametrize(
    ("fields", "frozen"),
    [
        ({"frozen": ()}, set()),
        ({"frozen": None}, {"backbone/stem", "backbone/stages/0"}),
        ({"frozen": ("backbone/stem", "backbone/stages/0")}, {"backbone/stem", "backbone/stages/0"}),
        ({"frozen": (), "backbone_learning_rate": 0.0}, {"backbone"}),
        ({"frozen": ("backbone/st",)}, set()),
    ],
)
def test_frozen_paths_are_whole_path_segments(fields, frozen):
    model = nnx.eval_shape(lambda: DETR(tiny_config().model, rngs=nnx.Rngs(0)))
    _, trained, rest = nnx.split(model, is_trainable(Config(optimizer=OptimizerConfig(**fields))), ...)

    def names(state):
        return {
            "/".join(str(part.key) for part in path)
            for path, _ in jax.tree_util.tree_leaves_with_path(nnx.as_pure(state))
        }

    assert all(any(name.startswith(f"{prefix}/") for prefix in frozen) for name in names(rest))
    assert not any(name.startswith(f"{prefix}/") for name in names(trained) for prefix in frozen)
    assert names(trained)


@pytest.mark.parametrize("wrong", ["sampling_ofsets", "reference", "stem"])
def test_a_slow_path_that_names_nothing_is_refused(wrong):
    config = tiny_config()
    config.optimizer.slow_parameters = ("self_attention", wrong)
    with pytest.raises(ConfigError, match=rf"optimizer\.slow_parameters holds '{wrong}', but no parameter's path"):
        abstract_model(config)


def test_slow_parameters_are_found_by_whole_path_segments():
    config = tiny_config()
    params = abstract_model(config).params
    groups = parameter_groups(params, ("self_attention/query", "box_head"))
    slow = {
        "/".join(str(part.key) for part in path)
        for path, group in jax.tree_util.tree_leaves_with_path(groups)
        if group == "slow"
    }
    assert slow == {
        *(f"box_head/layers/{i}/{leaf}" for i in range(3) for leaf in ("kernel", "bias")),
        *(f"encoder/layers/0/self_attention/query/{leaf}" for leaf in ("kernel", "bias")),
        *(f"decoder/layers/{i}/self_attention/query/{leaf}" for i in range(2) for leaf in ("kernel", "bias")),
    }
