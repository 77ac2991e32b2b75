"""What loss terms, costs and backbones of one's own return is checked, with the name of the entry in the message."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax.config import BackboneBase, ConfigError, Diagnostic, LossConfig, LossTerm, Matcher, MatchingCost
from detr_jax.losses import set_loss
from detr_jax.models import FeatureMap
from detr_jax.structures import Outputs
from detr_jax.testing import random_predictions, random_targets, tiny_config

LAYERS, BATCH, QUERIES, TARGETS = 2, 3, 6, 4


def loss_with(rng, config):
    targets = random_targets(rng, [1, 0, 4], num_classes=3)
    predictions = random_predictions(rng, layers=LAYERS, batch=BATCH, queries=QUERIES, num_logits=4)
    return jax.jit(lambda outputs, targets: set_loss(outputs, targets, config))(Outputs(predictions), targets)


@dataclasses.dataclass(kw_only=True)
class Given(LossTerm):
    value: object = None

    def compute(self, matched):
        return self.value


@dataclasses.dataclass(kw_only=True)
class GivenDiagnostic(Diagnostic):
    value: object = None

    def compute(self, matched):
        return self.value


@dataclasses.dataclass(kw_only=True)
class GivenCost(MatchingCost):
    value: object = None

    def compute(self, predictions, targets):
        return self.value


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (jnp.float32(1.0), "float32 of shape []"),
        (jnp.ones((LAYERS, 2)), "float32 of shape [2, 2]"),
        (jnp.ones(3), "float32 of shape [3]"),
        (0.5, "an object of class float"),
        (None, "an object of class NoneType"),
    ],
)
@pytest.mark.parametrize("kind", [Given, GivenDiagnostic])
def test_a_term_that_does_not_return_one_number_per_layer_is_refused_by_name(rng, value, found, kind):
    config = LossConfig(matcher=Matcher.DEVICE)
    config.terms["mine"] = kind(value=value)
    wanted = LAYERS if kind is Given else 1
    words = (
        f"loss.terms.mine ({kind.__name__}) returned {found}: it must return an array of shape [L], here [{wanted}]."
    )
    with pytest.raises(ConfigError, match=re.escape(words)):
        loss_with(rng, config)


@pytest.mark.parametrize(
    "shape", [(), (LAYERS, BATCH, QUERIES), (LAYERS, BATCH, QUERIES, 1), (LAYERS, BATCH, TARGETS, QUERIES)]
)
def test_a_cost_of_another_shape_is_refused_by_name(rng, shape):
    config = LossConfig(matcher=Matcher.DEVICE)
    config.costs["mine"] = GivenCost(value=jnp.ones(shape))
    words = (
        f"loss.costs.mine (GivenCost) returned float32 of shape {list(shape)}: it must return an array of shape "
        f"[L, B, Q, T], here {[LAYERS, BATCH, QUERIES, TARGETS]}."
    )
    with pytest.raises(ConfigError, match=re.escape(words)):
        loss_with(rng, config)


def test_terms_and_costs_of_the_right_shape_are_added_with_their_weights(rng):
    config = LossConfig(matcher=Matcher.DEVICE)
    seed = int(rng.integers(2**31))
    before, _ = loss_with(np.random.default_rng(seed), config)
    config.terms["mine"] = Given(value=jnp.array([1.0, 2.0]), weight=3.0)
    config.costs["mine"] = GivenCost(value=jnp.ones((LAYERS, BATCH, QUERIES, TARGETS)))
    after, logged = loss_with(np.random.default_rng(seed), config)
    np.testing.assert_allclose(after - before, 9.0, rtol=1e-5)
    assert (logged["loss_mine_0"], logged["loss_mine"]) == (1, 2)


@dataclasses.dataclass(kw_only=True)
class Pooled(BackboneBase):
    """The first pixels of cells, as two levels. ``result`` changes what the module returns."""

    result: object = None
    channels_given: object = (3, 3)
    strides_given: object = (4, 8)

    @property
    def channels(self):
        return self.channels_given

    @property
    def strides(self):
        return self.strides_given

    def build(self, *, dtype, remat, rngs):
        return PooledModule(self.result)


class PooledModule(nnx.Module):
    def __init__(self, result):
        self.result = result

    def __call__(self, images, valid_sizes):
        levels = tuple(level(images, stride) for stride in (4, 8))
        return levels if self.result is None else self.result(levels)


def level(images, stride):
    return FeatureMap(images[:, ::stride, ::stride], None, stride)


def run_detector(backbone):
    config = tiny_config().model
    config.backbone = backbone
    return nnx.eval_shape(
        lambda images, sizes: config.build(rngs=nnx.Rngs(0))(images, sizes),
        jax.ShapeDtypeStruct((2, 32, 16, 3), jnp.float32),
        jax.ShapeDtypeStruct((2, 2), jnp.int32),
    )


def changed(levels, index, **fields):
    return (*levels[:index], dataclasses.replace(levels[index], **fields), *levels[index + 1 :])


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (
            lambda levels: levels[-1].values,
            "model.backbone (Pooled) returned float32 of shape [2, 4, 2, 3]: it must return",
        ),
        (lambda levels: levels[-1], "model.backbone (Pooled) returned an object of class FeatureMap: it must return a"),
        (lambda levels: levels[1:], "model.backbone (Pooled) returned (FeatureMap): it must return a tuple of 2"),
        (lambda levels: (levels[0], levels[1].values), "it must return a tuple of 2 detr_jax.models.FeatureMap"),
        (
            lambda levels: changed(levels, 0, values=levels[0].values[..., :2]),
            "Level 0 of model.backbone (Pooled) has values of shape [2, 8, 4, 2], but its configuration has 3 channels",
        ),
        (
            lambda levels: changed(levels, 1, stride=16),
            "Level 1 of model.backbone (Pooled) has the stride 16, but its configuration has the stride 8.",
        ),
        (
            lambda levels: changed(levels, 1, values=levels[0].values),
            "Level 1 of model.backbone (Pooled) has a height of 8 cells for 32 pixels, but its configuration has the",
        ),
    ],
)
def test_features_that_differ_from_the_configuration_are_refused(result, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        run_detector(Pooled(result=result))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"channels_given": 3}, "model.backbone (Pooled) has channels=3: it must be a tuple"),
        ({"strides_given": ()}, "model.backbone (Pooled) has strides=(): it must be a tuple"),
        ({"channels_given": (3,)}, "has channels=(3,) and strides=(4, 8): both must have one number per level"),
    ],
)
def test_channels_and_strides_that_describe_no_levels_are_refused(fields, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        run_detector(Pooled(**fields))


def test_features_as_configured_are_accepted():
    assert run_detector(Pooled()).boxes.shape == (2, 2, 5, 4)
