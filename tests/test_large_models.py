"""Tests with models that are large enough for the fast forms of convolution.

Tiny models have few channels and small feature maps, and so use other forms of convolution than real ones do.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from detr_jax import Detector
from detr_jax.config import BackboneConfig
from detr_jax.export import export_model
from detr_jax.export_loader import Detector as ExportedDetector
from detr_jax.matching import Targets
from detr_jax.models import DETR, abstract_model, convolution, normalize_images, resnet_config
from detr_jax.postprocess import detections
from detr_jax.sharding import create_mesh
from detr_jax.testing import tiny_config
from detr_jax.training.optimizer import create_optimizer
from detr_jax.training.state import create_model, create_state
from detr_jax.training.step import BatchInputs, create_train_step

BUCKET = (144, 160)
BATCH = 4


@pytest.fixture(autouse=True)
def standard_promotion():
    """optax mixes int32 counts with floats, which the strict promotion of the other tests forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def fast_forms(monkeypatch):
    """The shapes of the maps that Winograd's form or the stem's was traced for."""
    shapes = []
    for name in ("winograd_conv3x3", "_of_column_pairs"):
        form = getattr(convolution, name)

        def spied(x, kernel, form=form):
            shapes.append(x.shape)
            return form(x, kernel)

        monkeypatch.setattr(convolution, name, spied)
    return shapes


def _config(blocks=(1, 1), **model):
    """128 and 256 channels on maps of 36 and 18 rows, behind ImageNet's stem; with one stage, the first of them."""
    config = tiny_config()
    backbone = BackboneConfig(block="basic", blocks=blocks, width=128, norm="group")
    config.model = dataclasses.replace(config.model, backbone=backbone, dropout=0.0, **model)
    config.training.batch_size = BATCH
    return config


def _images(rng, number, bucket):
    sizes = np.stack([rng.integers(side // 2, side, number, endpoint=True) for side in bucket], 1)
    return rng.integers(0, 256, (number, *bucket, 3), np.uint8), sizes.astype(np.int32)


def test_an_exported_model_gives_the_detections_of_the_model_for_batches_of_any_size(
    fast_forms, rng, rngs, tmp_path, monkeypatch
):
    config = _config(remat="all")
    model = DETR(config.model, rngs=rngs)
    export_model(model, config, tmp_path / "out", buckets=[BUCKET], weights_beside=True)
    assert {shape[1:] for shape in fast_forms} == {(*BUCKET, 3), (36, 40, 128), (18, 20, 256)}
    images, sizes = _images(rng, 3, BUCKET)
    originals = rng.integers(20, 2000, (3, 2), np.int32)

    @jax.jit
    def expected_of(model, images, sizes, originals):
        found = model(normalize_images(images, sizes), sizes)
        return detections(found.logits[-1], found.boxes[-1], originals)

    monkeypatch.setattr(convolution, "winograd_is_faster", lambda *shapes: False)
    expected = jax.device_get(expected_of(model, images, sizes, originals))
    exported = ExportedDetector(tmp_path / "out")
    scale = originals[:, None, [1, 0, 1, 0]]
    for number in (1, 2, 3):
        found = exported(images[:number], sizes[:number], originals[:number])
        np.testing.assert_allclose(found.scores, expected.scores[:number], atol=1e-5)
        np.testing.assert_allclose(found.boxes / scale[:number], (expected.boxes / scale)[:number], atol=1e-5)
    graph, _ = abstract_model(_config(dtype="bfloat16").model)
    half = nnx.merge(graph, nnx.state(model))
    similar = jax.device_get(expected_of(half, images, sizes, originals))
    np.testing.assert_allclose(similar.scores, expected.scores, atol=0.1)
    assert not np.array_equal(similar.scores, expected.scores)


def test_an_exported_resnet18_of_full_size_gives_the_detections_of_the_detector(fast_forms, rng, rngs, tmp_path):
    config = _config()
    config.model = dataclasses.replace(config.model, backbone=resnet_config(18), num_queries=10, hidden_dim=64)
    config.data = dataclasses.replace(config.data, val_short_side=480, max_long_side=640, val_buckets=())
    model = DETR(config.model, rngs=rngs)
    export_model(model, config, tmp_path / "out", buckets=[(480, 640)])
    assert {shape[1:] for shape in fast_forms} == {(480, 640, 3), (60, 80, 128), (30, 40, 256), (15, 20, 512)}
    images = [rng.integers(0, 256, (480, width, 3), np.uint8) for width in (640, 600)]
    detector = Detector(model, config, batch_size=2)
    assert detector.buckets[detector.buckets.index((480, 640))] == (480, 640)
    exported = ExportedDetector(tmp_path / "out")
    for found, expected in zip(exported.predict(images, 0), detector.predict(images, 0), strict=True):
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=640 * 1e-5)
        assert len(found.scores) == 10


def _step(config, batch, devices):
    """State and terms after one step."""
    mesh = create_mesh(jax.devices()[:devices])
    model = create_model(config)
    optimizer = create_optimizer(config.optimizer, 10, 5)
    state = create_state(model, optimizer, config, mesh)
    step = create_train_step(model, optimizer, config, mesh)
    return jax.device_get(jax.block_until_ready(step(state, model.frozen, batch)))


@pytest.fixture
def batch(rng):
    images, sizes = _images(rng, BATCH, BUCKET)
    centers = rng.uniform(0.3, 0.7, (BATCH, 3, 2))
    boxes = np.concatenate([centers, rng.uniform(0.1, 0.5, (BATCH, 3, 2))], axis=2).astype(np.float32)
    labels, count = rng.integers(0, 3, (BATCH, 3)).astype(np.int32), rng.integers(1, 4, BATCH).astype(np.int32)
    return BatchInputs(images, sizes, Targets(boxes, labels, count))


def test_parts_devices_and_recomputation_give_the_step_of_plain_convolutions(fast_forms, batch, monkeypatch):
    """Values and gradients by Winograd's form, in two parts on two devices, are those of the plain form in one go."""
    config = _config((1,), remat="all")
    config.training.accumulate = 2
    state, terms = _step(config, batch, 2)
    assert {shape[1:] for shape in fast_forms} == {(*BUCKET, 3), (36, 40, 128)}
    fast_forms.clear()
    monkeypatch.setattr(convolution, "winograd_is_faster", lambda *shapes: False)
    plain, plain_terms = _step(_config((1,)), batch, 1)
    assert {shape[1:] for shape in fast_forms} == {(*BUCKET, 3)}
    for name in ("loss", "loss_ce", "loss_bbox", "loss_giou", "gradient_norm"):
        assert terms[name] == pytest.approx(plain_terms[name], rel=1e-3), name
    moments = [jax.tree.leaves_with_path(one.opt_state) for one in (state, plain)]
    largest = max(np.abs(x).max() for path, x in moments[1] if "mu" in jax.tree_util.keystr(path))
    for (path, found), (_, expected) in zip(*moments, strict=True):  # of AdamW: the gradients and their squares
        # a bias of keys has no gradient, only rounding
        atol = 3e-3 * np.abs(expected).max() + 1e-6 * largest
        np.testing.assert_allclose(found, expected, atol=atol, err_msg=jax.tree_util.keystr(path))
