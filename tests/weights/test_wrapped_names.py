"""Prefixes that wrappers, trainers and EMAs put before a model's names."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from detr_jax.weights import WeightsError, read_pretrained
from detr_jax.weights.files import TensorFile
from detr_jax.weights.layouts import LAYOUTS
from detr_jax.weights.recognition import recognise
from tests.weights import framework_states as states

STATES = {
    "facebook": states.facebook,
    "detectron2": states.detectron2,
    "huggingface": states.transformers4,
    "mmdetection": states.mmdetection,
    "torchvision": states.torchvision,
}
PREFIXES = (
    "module.",
    "model.",
    "detr.",
    "_orig_mod.",
    "module._orig_mod.",
    "model._orig_mod.module.",
    "ema_model.module.",
    "model.detr.",
    "net.",
    "self.anything.at_all.",
)


def sort(state):
    return recognise(TensorFile(Path("model.pth"), dict(state)), LAYOUTS)


def assert_same(found, expected):
    assert found.layout is expected.layout
    assert (found.unexpected, len(found.ignored)) == ([], len(expected.ignored))
    found, expected = found.converted(), expected.converted()
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


@pytest.mark.parametrize("name", STATES)
def test_every_prefix_is_removed(bottleneck, name):
    state = STATES[name](bottleneck.weights)
    expected = sort(state)
    assert expected.layout.kind == name
    for prefix in PREFIXES:
        assert_same(sort({prefix + name: value for name, value in state.items()}), expected)


@pytest.mark.parametrize("name", ["facebook", "huggingface"])
def test_a_compiled_part_within_a_model(bottleneck, name):
    state = STATES[name](bottleneck.weights)
    inner = {"facebook": "backbone.0.", "huggingface": "model.backbone."}[name]
    assert_same(sort({x.replace(inner, f"{inner}_orig_mod.", 1): v for x, v in state.items()}), sort(state))


def test_tensors_of_the_training_code_are_ignored(bottleneck):
    state = states.facebook(bottleneck.weights)
    saved = {f"model.{name}": value for name, value in state.items()}
    saved |= {"criterion.empty_weight": np.ones(81), "val_metric.mAP": np.zeros(1), "n_averaged": np.array(7)}
    found = sort(saved)
    assert found.unexpected == []
    assert len(found.ignored) == 3


@pytest.mark.parametrize("average", ["ema_model.module.", "model_ema.", "averaged."])
def test_if_a_file_holds_two_copies_the_ema_is_taken_and_the_other_is_ignored(bottleneck, rng, average):
    state = states.facebook(bottleneck.weights)
    plain = {f"model.{name}": rng.normal(size=value.shape).astype(np.float32) for name, value in state.items()}
    found = sort({**plain, **{average + name: value for name, value in state.items()}})
    assert (found.unexpected, len(found.ignored)) == ([], len(state))
    for path, value in sort(state).converted().items():
        np.testing.assert_array_equal(found.converted()[path], value)


def test_tensors_that_do_not_share_the_prefix_are_unexpected_and_missing_ones_have_it(bottleneck, tmp_path):
    state = {f"model.{name}": np.ascontiguousarray(x) for name, x in states.facebook(bottleneck.weights).items()}
    del state["model.class_embed.bias"]
    state["another_head.weight"] = np.zeros((2, 3), np.float32)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        read_pretrained(tmp_path / "model.safetensors")
    assert "1 missing:\n    model.class_embed.bias\n" in str(caught.value)
    assert "1 unexpected:\n    another_head.weight [2, 3]" in str(caught.value)
