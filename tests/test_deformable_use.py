"""A small Deformable DETR from training to pictures and export, in every variant."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from detr_jax import Detector, train
from detr_jax.config import DataConfig, from_json, to_json
from detr_jax.export import export_model
from detr_jax.losses import set_loss
from detr_jax.structures import Outputs, Predictions, Targets
from detr_jax.testing import random_predictions, random_targets, reference_match, tiny_deformable_config
from detr_jax.weights import ImportedWeights, merge_pretrained
from detr_jax.weights.trees import by_path

VARIANTS = {
    "multi_scale": {},
    "two_stage": {"refine_boxes": True, "two_stage": True},
}


@pytest.fixture(scope="module", autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax computes powers of floats with integers
        yield


@pytest.fixture(scope="module", params=VARIANTS)
def run(request, tmp_path_factory, one_device):
    """A workdir after a few steps."""
    config = tiny_deformable_config(**VARIANTS[request.param])
    config.training.steps = 6
    workdir = tmp_path_factory.mktemp(request.param)
    losses = []
    metrics = train(config, workdir, mesh=one_device, on_log=lambda step, numbers: losses.append(numbers))
    return workdir, config, losses, metrics


def test_a_run_logs_every_group_and_resumes(run, one_device):
    workdir, config, losses, metrics = run
    first = losses[0]
    assert np.isfinite(first["train/loss"])
    groups = ("", "_0", "_enc") if config.model.two_stage else ("", "_0")
    assert {f"train/loss_{name}{group}" for name in ("ce", "bbox", "giou") for group in groups} <= first.keys()
    total = sum(
        first[f"train/loss_{name}{group}"] * config.loss.terms[name].weight
        for name in ("ce", "bbox", "giou")
        for group in groups
    )
    assert first["train/loss"] == pytest.approx(total, rel=1e-5)
    assert 0 <= metrics["AP"] <= 1
    longer = from_json(to_json(config))
    longer.training.steps = 8
    assert train(longer, workdir, mesh=one_device)["AP"] >= 0


def test_a_detector_predicts_exports_and_shows_its_points(run, rng, tmp_path):
    workdir, config, _, _ = run
    detector = Detector.from_checkpoint(workdir)
    image = rng.integers(0, 256, (30, 24, 3), dtype=np.uint8)
    found = detector.predict(image, threshold=0)
    assert len(found) == min(100, 6 * 3)
    assert (np.diff(found.scores) <= 0).all()

    looked = detector.attention(image, threshold=0)
    np.testing.assert_allclose(looked.found.scores, found.scores, atol=1e-5)
    heads, levels, points = 2, config.model.num_levels, 2
    assert looked.places.shape == (18, heads, levels, points, 2)
    np.testing.assert_allclose(looked.weights.sum(axis=(2, 3)), 1, atol=1e-5)
    one, three = (looked.draw(max_detections=number).size for number in (0, 2))
    assert three[0] > 2 * one[0]
    with pytest.raises(ValueError, match="no attention maps of its encoder"):
        looked.draw([(1, 1)])

    export_model(detector.model, detector.config, tmp_path / "out", buckets=[(32, 32)], platforms=["cpu"])
    spec = importlib.util.spec_from_file_location("loader", tmp_path / "out" / "loader.py")
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["max_detections"] == 18
    batch = np.zeros((2, 32, 32, 3), np.uint8)
    batch[:, :30, :24] = image
    sizes = np.array([[30, 24]] * 2, np.int32)
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "model_32x32.stablehlo").read_bytes()))
    _, scores, _ = program.call(batch, sizes, sizes)
    np.testing.assert_allclose(np.sort(scores[1])[::-1], found.scores, atol=1e-5)


@pytest.mark.parametrize("agnostic", [True, False])
def test_proposals_are_compared_with_objects_or_with_classes(rng, agnostic):
    """Every layer by itself, from the definition in numpy."""
    config = tiny_deformable_config().loss
    layers = random_predictions(rng, layers=2, batch=2, queries=6, num_logits=4)
    proposals = random_predictions(rng, layers=1, batch=2, queries=30, num_logits=4)
    targets = random_targets(rng, [3, 2], num_classes=4)
    outputs = Outputs(layers, proposals, class_agnostic_proposals=agnostic)
    _, logged = set_loss(outputs, targets, config)

    wanted_labels = np.zeros_like(targets.labels) if agnostic else np.asarray(targets.labels)
    alone = Targets(targets.boxes, wanted_labels, targets.count)
    alone_config = dataclasses.replace(config, auxiliary=False)
    _, expected = set_loss(Outputs(proposals), alone, alone_config)
    for name in ("ce", "bbox", "giou"):
        np.testing.assert_allclose(logged[f"loss_{name}_enc"], expected[f"loss_{name}"], rtol=1e-6)

    logits = np.asarray(proposals.logits, np.float64)[0]
    probability = 1 / (1 + np.exp(-logits))
    cost = np.zeros((1, 2, 30, 3))
    for image in range(2):
        for query in range(30):
            for target in range(3):
                p = probability[image, query, wanted_labels[image, target]]
                focal = -0.25 * (1 - p) ** 2 * np.log(p + 1e-8) + 0.75 * p**2 * np.log(1 - p + 1e-8)
                box, other = np.asarray(proposals.boxes)[0, image, query], np.asarray(targets.boxes)[image, target]
                cost[0, image, query, target] = 2 * focal + 5 * np.abs(box - other).sum() + 2 * (1 - _giou(box, other))
    matched = reference_match(cost, np.asarray(targets.count))[0]
    is_target = np.zeros_like(logits)
    for image in range(2):
        for target in range(int(targets.count[image])):
            is_target[image, matched[image, target], wanted_labels[image, target]] = 1
    p = np.where(is_target > 0, probability, 1 - probability)
    loss = (-np.where(is_target > 0, 0.25, 0.75) * (1 - p) ** 2 * np.log(p)).sum() / 5
    np.testing.assert_allclose(logged["loss_ce_enc"], loss, rtol=1e-4)


def _giou(a, b):
    from detr_jax.testing import reference_giou

    def corners(box):
        return box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2

    return reference_giou(corners(a), corners(b))


def test_no_target_is_given_to_padding(rng):
    logits = random_predictions(rng, layers=1, batch=2, queries=6, num_logits=3)
    boxes, absent = np.array(logits.boxes), np.zeros((1, 2, 6), bool)
    absent[:, 0, 2:], absent[:, 1, :2] = True, True
    values = np.array(logits.logits)
    values[absent] = -1e4
    targets = random_targets(rng, [4, 3], num_classes=3)
    boxes[0, 0, 2:] = targets.boxes[0]  # padding would fit best
    config = tiny_deformable_config().loss
    padded = Predictions(values, boxes, absent=absent)
    loss, terms = set_loss(padded, targets, config)
    assert float(loss) < 100
    moved = boxes.copy()
    moved[absent] = 0.5
    np.testing.assert_allclose(set_loss(Predictions(values, moved, absent=absent), targets, config)[0], loss, rtol=1e-6)
    assert np.isfinite([float(value) for value in terms.values()]).all()


def test_other_classes_keep_the_encoders_first_class(rngs):
    given = tiny_deformable_config(refine_boxes=True, two_stage=True, num_classes=5).model
    tree = nnx.as_pure(nnx.state(given.build(rngs=rngs)))
    weights = ImportedWeights(
        source=Path("file"), kind="random", params=by_path(tree), config=given, backbone=given.backbone,
        pixel_mean=given.pixel_mean, pixel_std=given.pixel_std, data=DataConfig(),
    )  # fmt: skip
    here = dataclasses.replace(given, num_classes=2)
    merged, _ = merge_pretrained(nnx.as_pure(nnx.state(here.build(rngs=rngs))), weights, here)
    before, after = by_path(tree), by_path(merged)
    for name in ("class_head/2/kernel", "class_head/2/bias"):
        np.testing.assert_array_equal(after[name][..., 0], before[name][..., 0])
        assert after[name].shape[-1] == 2
    np.testing.assert_allclose(after["class_head/2/bias"][1], -np.log(99), rtol=1e-6)
