"""The configuration is inferred from the tensors of every model of the original, with the original's counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from detr_jax.models import (
    DETR,
    abstract_model,
    detr_resnet50,
    detr_resnet50_panoptic,
    detr_resnet101,
    resnet_config,
)
from detr_jax.weights import load_pretrained, read_pretrained
from detr_jax.weights.detr_config import infer_detr
from detr_jax.weights.facebook import FACEBOOK
from detr_jax.weights.layout import Options
from detr_jax.weights.metadata import Metadata
from detr_jax.weights.sorting import sort_tensors
from detr_jax.weights.trees import by_path
from tests.weights import framework_states as states


def facebook_tensors(config):
    """A model's tensors in the original's layout, zeros that take no memory."""
    shapes = {path: leaf.shape for path, leaf in by_path(abstract_model(config)[1]).items()}
    zero = np.zeros((), np.float32)
    return states.facebook_from_ours({path: np.broadcast_to(zero, shape) for path, shape in shapes.items()})


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [(detr_resnet50(), 458, 41_524_768), (detr_resnet101(), 713, 60_464_672)],
    ids=["r50", "r101"],
)
def test_tensor_and_parameter_counts_are_the_original_s(config, tensors, parameters):
    """Spec section 13 and 1; frozen statistics are tensors, but not parameters, as in the original."""
    state = facebook_tensors(config)
    assert len(state) == tensors
    found = sort_tensors(state, FACEBOOK)
    assert len(found.known) == tensors
    arrays = found.converted()
    assert infer_detr({path: x.shape for path, x in arrays.items()}, Metadata(), Options()) == config
    assert sum(x.size for path, x in arrays.items() if not ("backbone" in path and "/norm/" in path)) == parameters


@pytest.mark.parametrize("prefix", ["detr.", "module."])
def test_a_panoptic_checkpoint_has_490_tensors_of_which_32_are_the_mask_head_s(prefix):
    """The original stores the detector under ``detr.``, and the mask head beside it."""
    state = {
        name if name.startswith(("mask_head.", "bbox_attention.")) and prefix == "detr." else prefix + name: value
        for name, value in facebook_tensors(detr_resnet50_panoptic()).items()
    }
    assert len(state) == 490
    assert sum("mask_head." in name or "bbox_attention." in name for name in state) == 32
    found = sort_tensors(state, FACEBOOK)
    assert (len(found.known), found.unexpected) == (490, [])
    arrays = found.converted()
    assert infer_detr({path: x.shape for path, x in arrays.items()}, Metadata(), Options()) == detr_resnet50_panoptic()
    counted = sum(x.size for path, x in arrays.items() if not ("backbone" in path and "/norm/" in path))
    assert counted == 42_899_288


@pytest.mark.parametrize("depth", [18, 34, 50, 101])
@pytest.mark.parametrize("fields", [{}, {"pre_norm": True, "position_embedding": "learned", "num_queries": 30}])
def test_every_model_of_the_original_is_recognised(depth, fields):
    config = detr_resnet50(
        backbone=resnet_config(depth), num_classes=11, encoder_layers=3, feedforward_dim=1024, **fields
    )
    arrays = sort_tensors(facebook_tensors(config), FACEBOOK).converted()
    shapes = {path: x.shape for path, x in arrays.items()}
    assert infer_detr(shapes, Metadata(), Options()) == config


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("position_embedding", ["sine", "learned"])
def test_a_model_comes_back_from_the_original_s_layout_bit_by_bit(
    tmp_path, rng, rngs, tiny_model, tiny_backbone, block, pre_norm, position_embedding
):
    config = tiny_model(
        backbone=tiny_backbone(block=block, blocks=(1, 2, 1, 1)),
        num_heads=8,
        pre_norm=pre_norm,
        position_embedding=position_embedding,
    )
    model = DETR(config, rngs=rngs)
    state = nnx.as_pure(nnx.state(model))
    state = jax.tree.map(lambda x: x + jnp.asarray(rng.uniform(0, 0.1, x.shape), x.dtype), state)
    nnx.update(model, state)
    path = tmp_path / "model.safetensors"
    tensors = states.facebook_from_ours({name: np.asarray(x) for name, x in by_path(state).items()})
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)

    weights = read_pretrained(path)
    assert dataclasses.replace(weights.config, dropout=config.dropout) == config
    loaded = by_path(nnx.as_pure(nnx.state(load_pretrained(path))))
    for name, value in by_path(state).items():
        assert isinstance(loaded[name], jax.Array)  # not sent to the device again with every call
        np.testing.assert_array_equal(loaded[name], value)


def test_num_heads_can_be_given(tmp_path, tiny_model, tiny_backbone):
    config = tiny_model(num_heads=4)
    path = tmp_path / "model.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in facebook_tensors(config).items()}, path)
    assert read_pretrained(path).config.num_heads == 8
    assert read_pretrained(path, num_heads=4).config.num_heads == 4
