"""A small DINO from training to pictures and export."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from detr_jax import Detector, train
from detr_jax.config import DataConfig, from_json, to_json
from detr_jax.export import export_model
from detr_jax.testing import tiny_dino_config
from detr_jax.weights import ImportedWeights, merge_pretrained
from detr_jax.weights.trees import by_path


@pytest.fixture(scope="module", autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax computes powers of floats with integers
        yield


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, one_device):
    """A workdir after a few steps, and after the run was resumed."""
    config = tiny_dino_config()
    config.training.steps = 5
    folder = tmp_path_factory.mktemp("dino")
    assert 0 <= train(config, folder, mesh=one_device)["AP"] <= 1
    longer = from_json(to_json(config))
    longer.training.steps = 7
    assert 0 <= train(longer, folder, mesh=one_device)["AP"] <= 1
    return folder


def test_a_detector_predicts_exports_and_shows_its_points(workdir, rng, tmp_path):
    detector = Detector.from_checkpoint(workdir)
    image = rng.integers(0, 256, (30, 24, 3), dtype=np.uint8)
    found = detector.predict(image, threshold=0)
    assert len(found) == 6 * 3
    looked = detector.attention(image, threshold=0)
    np.testing.assert_allclose(looked.found.scores, found.scores, atol=1e-5)
    assert looked.places.shape == (18, 2, detector.config.model.num_levels, 2, 2)

    export_model(detector.model, detector.config, tmp_path / "out", buckets=[(32, 32)], platforms=["cpu"])
    batch = np.zeros((2, 32, 32, 3), np.uint8)
    batch[:, :30, :24] = image
    sizes = np.array([[30, 24]] * 2, np.int32)
    program = jax.export.deserialize(bytearray((tmp_path / "out" / "model_32x32.stablehlo").read_bytes()))
    _, scores, _ = program.call(batch, sizes, sizes)
    np.testing.assert_allclose(np.sort(scores[1])[::-1], found.scores, atol=1e-5)


def test_other_classes_and_queries_start_anew_and_all_else_is_kept(rngs):
    given = tiny_dino_config(num_classes=5).model
    tree = nnx.as_pure(nnx.state(given.build(rngs=rngs)))
    weights = ImportedWeights(
        source=Path("file"), kind="random", params=by_path(tree), config=given, backbone=given.backbone,
        pixel_mean=given.pixel_mean, pixel_std=given.pixel_std, data=DataConfig(),
    )  # fmt: skip
    here = dataclasses.replace(given, num_classes=2, num_queries=9, denoising_queries=40, denoising_box_noise=0.4)
    own = nnx.as_pure(nnx.state(here.build(rngs=rngs)))
    merged, _ = merge_pretrained(own, weights, here)
    before, new, after = by_path(tree), by_path(own), by_path(merged)
    resized = {path for path in after if path.startswith("class_head/")} | {"label_embedding", "content"}
    for path, value in after.items():
        np.testing.assert_array_equal(value, (new if path in resized else before)[path], err_msg=path)
