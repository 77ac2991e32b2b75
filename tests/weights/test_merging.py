"""Imported weights as the start of another model's training."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from detr_jax.config import BackboneConfig, MaskHeadConfig, ModelConfig
from detr_jax.models import DETR
from detr_jax.weights import WeightsError, merge_pretrained, outcome_table, read_pretrained
from detr_jax.weights.trees import by_path
from tests.weights import framework_states as states


def read(folder, state):
    path = folder / "model.safetensors"
    save_file({name: np.ascontiguousarray(value) for name, value in state.items()}, path)
    return read_pretrained(path)


@pytest.fixture
def weights(bottleneck, tmp_path):
    return read(tmp_path, states.facebook(bottleneck.weights))


def tree_of(config, rngs):
    return nnx.as_pure(nnx.state(DETR(config, rngs=rngs)))


def paths_by_outcome(outcomes):
    """Paths by what happened to them."""
    return {what: {o.path for o in outcomes if o.what == what} for what in {o.what for o in outcomes}}


def test_every_param_of_the_same_model_is_loaded(weights, rngs):
    tree, outcomes = merge_pretrained(tree_of(weights.config, rngs), weights, weights.config)
    assert paths_by_outcome(outcomes) == {"loaded": set(weights.params)}
    for path, value in by_path(tree).items():
        np.testing.assert_array_equal(value, weights.params[path])


def test_other_classes_and_queries_are_reinitialised_and_the_table_says_why(weights, rngs):
    config = dataclasses.replace(weights.config, num_classes=3, num_queries=11)
    before = tree_of(config, rngs)
    tree, outcomes = merge_pretrained(before, weights, config)
    restarted = {"class_head/kernel", "class_head/bias", "object_queries"}
    assert paths_by_outcome(outcomes) == {"loaded": set(weights.params) - restarted, "re-initialised": restarted}
    before, after = by_path(before), by_path(tree)
    for path, value in after.items():
        np.testing.assert_array_equal(value, before[path] if path in restarted else weights.params[path])
    table = outcome_table(outcomes)
    assert "class_head" in table
    assert "num_classes is 80 in the checkpoint and 3 here" in table
    assert "num_queries is 7 in the checkpoint and 11 here" in table
    assert len(table.splitlines()) < 12, "one line per module and outcome"


def test_layers_that_the_model_lacks_are_dropped(weights, rngs):
    config = dataclasses.replace(weights.config, decoder_layers=2)
    tree, outcomes = merge_pretrained(tree_of(config, rngs), weights, config)
    assert {path.split("/")[2] for path in paths_by_outcome(outcomes)["dropped"]} == {"2"}
    assert by_path(tree).keys() == {o.path for o in outcomes if o.what == "loaded"}


def test_a_checkpoint_of_only_a_backbone_initialises_a_detector(weights, bottleneck, tmp_path, rngs):
    backbone = read(tmp_path, states.torchvision(bottleneck.weights))
    before = tree_of(weights.config, rngs)
    tree, outcomes = merge_pretrained(before, backbone, weights.config)
    assert paths_by_outcome(outcomes)["loaded"] == {path for path in weights.params if path.startswith("backbone/")}
    assert all(o.why == "the checkpoint holds only a backbone" for o in outcomes if o.what == "missing")
    for path, value in by_path(tree).items():
        expected = backbone.params.get(path, by_path(before)[path])
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pre_norm": True}, "model.pre_norm is False in the checkpoint and True"),
        ({"hidden_dim": 32}, "model.hidden_dim is 16 in the checkpoint and 32"),
        ({"num_heads": 4}, "model.num_heads is 8 in the checkpoint and 4"),
        ({"position_embedding": "learned"}, "model.position_embedding is 'sine'"),
    ],
)
def test_models_that_compute_something_else_are_refused(weights, rngs, fields, said):
    config = dataclasses.replace(weights.config, **fields)
    with pytest.raises(WeightsError, match=said):
        merge_pretrained(tree_of(config, rngs), weights, config)


def test_group_norm_does_not_take_a_batch_norm_s_scale(weights, rngs):
    backbone = dataclasses.replace(weights.config.backbone, norm="group")
    config = dataclasses.replace(weights.config, backbone=backbone)
    with pytest.raises(WeightsError, match=r"model\.backbone\.norm is 'frozen_batch' in the checkpoint and 'group'"):
        merge_pretrained(tree_of(config, rngs), weights, config)


def test_dtypes_of_the_model_are_kept(weights, rngs):
    tree, _ = merge_pretrained(tree_of(weights.config, rngs), weights, weights.config)
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype("float32")}


@dataclasses.dataclass(kw_only=True)
class StarConfig(ModelConfig):
    """Another family, whose parameters have other names."""

    rays: int = 5
    petals: int = 2
    free_fields: ClassVar = ("petals",)
    resizing_fields: ClassVar = {"rays": r"star/ray_.*"}


@pytest.fixture
def star(weights, rng):
    """Imported weights of the other family."""
    params = {name: rng.normal(size=(3, 5)).astype(np.float32) for name in ("star/ray_kernel", "star/core")}
    return dataclasses.replace(weights, backbone=BackboneConfig(), config=StarConfig(), params=params)


def star_tree(rays):
    return {"star": {"ray_kernel": np.zeros((3, rays), np.float32), "core": np.zeros((3, 5), np.float32)}}


def test_the_configuration_of_another_family_names_its_heads_and_what_may_differ(star):
    tree, outcomes = merge_pretrained(star_tree(7), star, StarConfig(rays=7, petals=9))
    by_what = paths_by_outcome(outcomes)
    assert by_what == {"re-initialised": {"star/ray_kernel"}, "loaded": {"star/core"}}
    np.testing.assert_array_equal(tree["star"]["core"], star.params["star/core"])
    assert "rays is 5 in the checkpoint and 7 here" in outcome_table(outcomes)


def test_fields_that_another_family_does_not_name_must_agree(star):
    with pytest.raises(WeightsError, match=r"model\.num_queries is 100 in the checkpoint and 50"):
        merge_pretrained(star_tree(5), star, StarConfig(num_queries=50))


def test_a_checkpoint_of_another_family_is_refused(star):
    with pytest.raises(WeightsError, match="model is a StarConfig in the checkpoint and a DETRConfig"):
        merge_pretrained(star_tree(5), star, ModelConfig())


def panoptic(rngs, **fields):
    """A small detector with a mask head, as the original stores it, with three levels above the last."""
    backbone = BackboneConfig(blocks=(1, 1, 1, 1), width=8)
    config = ModelConfig(
        backbone=backbone,
        num_classes=5,
        num_queries=7,
        hidden_dim=64,
        num_heads=8,
        encoder_layers=1,
        decoder_layers=1,
        feedforward_dim=32,
        **{"masks": MaskHeadConfig(), **fields},
    )
    return config, tree_of(config, rngs)


def as_the_original(tree):
    """The detector under ``detr.`` and the mask head beside it."""
    state = states.facebook_from_ours({path: np.asarray(value) for path, value in by_path(tree).items()})
    return {
        name if name.startswith(("mask_head.", "bbox_attention.")) else f"detr.{name}": x for name, x in state.items()
    }


def test_a_detector_starts_a_model_with_masks(tmp_path, rngs):
    _, tree = panoptic(rngs, masks=None)
    weights = read(tmp_path, states.facebook_from_ours({path: np.asarray(x) for path, x in by_path(tree).items()}))
    assert weights.config.masks is None
    larger, before = panoptic(rngs)
    merged, outcomes = merge_pretrained(before, weights, larger)
    found = paths_by_outcome(outcomes)
    assert found["loaded"] == set(by_path(tree))
    assert found["missing"] == {path for path in by_path(before) if path.startswith("mask_head/")}
    np.testing.assert_array_equal(by_path(merged)["object_queries"], by_path(tree)["object_queries"])


def test_a_panoptic_checkpoint_starts_either_model(tmp_path, rngs):
    config, tree = panoptic(rngs)
    weights = read(tmp_path, as_the_original(tree))
    assert weights.config == config
    merged, outcomes = merge_pretrained(panoptic(rngs)[1], weights, config)
    assert paths_by_outcome(outcomes) == {"loaded": set(by_path(tree))}
    for path, value in by_path(merged).items():
        np.testing.assert_array_equal(value, by_path(tree)[path])
    plain, before = panoptic(rngs, masks=None)
    _, outcomes = merge_pretrained(before, weights, plain)
    dropped = paths_by_outcome(outcomes)["dropped"]
    assert dropped == {path for path in by_path(tree) if path.startswith("mask_head/")}
