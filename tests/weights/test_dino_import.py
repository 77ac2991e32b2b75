"""Checkpoints of mmdetection's DINO."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from detr_jax.config import DINOConfig, ResNetConfig
from detr_jax.data.coco_classes import COCO_CLASSES
from detr_jax.models import abstract_model
from detr_jax.weights import WeightsError, read_pretrained
from detr_jax.weights.dino_mmdetection import DINO_MMDETECTION
from detr_jax.weights.trees import by_path


def stored(params):
    """The parameters by our path under mmdetection's names. Its pyramid's convolutions have no biases."""
    state = {}
    for rule_path, value in params.items():
        name = DINO_MMDETECTION.name_of(rule_path)
        rule, paths = DINO_MMDETECTION.rule_of(name)
        if not (rule_path.startswith("pyramid/") and name.endswith("conv.bias")) and rule_path == paths[0]:
            parts = [params[path] for path in paths]
            whole = np.concatenate([part.T if part.ndim == 2 and len(paths) > 1 else part for part in parts])
            if len(paths) == 1:
                shape = rule.transform.stored_shape(value.shape)
                order = {4: (3, 2, 0, 1), 2: (0, 1) if shape == value.shape and "embed" in name else (1, 0)}
                whole = value.transpose(order[value.ndim]) if value.ndim in order else value
            state[name] = np.ascontiguousarray(whole)
    return state


@pytest.fixture
def model(rng):
    """A configuration, and random parameters for it by our path."""
    config = DINOConfig(
        backbone=ResNetConfig(blocks=(1, 1, 1, 1), width=8),
        num_classes=80,
        num_queries=7,
        hidden_dim=64,
        encoder_layers=1,
        decoder_layers=2,
        feedforward_dim=24,
        share_heads=False,
    )
    shapes = by_path(abstract_model(config)[1])
    params = {path: rng.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    for path, value in params.items():
        if path.startswith("pyramid/") and path.endswith("/bias") and "norm" not in path:
            value[:] = 0
    return config, params


def test_every_tensor_finds_its_place_and_labels_become_coco_ids(model, tmp_path):
    config, params = model
    save_file(stored(params), tmp_path / "dino.safetensors")
    found = read_pretrained(tmp_path / "dino.safetensors")
    assert found.kind == "mmdetection"
    assert isinstance(found.config, DINOConfig)
    assert found.config.num_classes == 91
    for field in ("num_queries", "hidden_dim", "decoder_layers", "feedforward_dim", "num_levels", "share_heads"):
        assert getattr(found.config, field) == getattr(config, field), field
    ids = sorted(COCO_CLASSES)
    assert found.params.keys() == params.keys()
    for path, value in params.items():
        ours = found.params[path]
        if path.startswith("class_head/"):
            ours = ours[..., ids]
        elif path == "label_embedding":
            assert not ours[0].any()
            ours = ours[ids]
        np.testing.assert_array_equal(ours, value, err_msg=path)


def test_a_missing_head_of_the_encoder_is_named(model, tmp_path):
    _, params = model
    state = {name: value for name, value in stored(params).items() if "cls_branches.2" not in name}
    save_file(state, tmp_path / "dino.safetensors")
    with pytest.raises(WeightsError, match=r"bbox_head\.cls_branches\.2\.weight"):
        read_pretrained(tmp_path / "dino.safetensors")
