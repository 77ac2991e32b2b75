"""Exported artefacts give the detections of the model, in a process that cannot import this package."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from click.testing import CliRunner
from flax import nnx
from PIL import Image

from detr_jax.checkpoints import Checkpoints
from detr_jax.cli import main
from detr_jax.config import Config, ConfigError, DataConfig
from detr_jax.data.transforms import resized
from detr_jax.export import ExportError, default_buckets, export_model
from detr_jax.export_loader import Detector
from detr_jax.models import DETR, normalize_images
from detr_jax.postprocess import detections
from detr_jax.testing import tiny_config

PROGRAM = """
import sys
sys.modules |= dict.fromkeys(("detr_jax", "flax", "optax", "orbax", "PIL"))  # importing any of them fails
import numpy as np
sys.path.insert(0, sys.argv[1])
from loader import Detector
detector = Detector(sys.argv[1])
inputs = np.load(sys.argv[2])
found = [detector(*(inputs[f"{name}{i}"] for name in ("images", "sizes", "originals"))) for i in range(2)]
np.savez(sys.argv[3], **{f"{name}{i}": x for i, one in enumerate(found) for name, x in one._asdict().items()})
"""


NAMES = ("images", "sizes", "originals")
MEAN, STD = (0.4, 0.5, 0.6), (0.3, 0.2, 0.25)


def _batch(rng, number, bucket):
    sizes = np.stack([rng.integers(bucket[i] // 2, bucket[i], number, endpoint=True) for i in (0, 1)], 1)
    images = rng.integers(0, 256, (number, *bucket, 3), np.uint8)  # what lies in the padding must not matter
    return images, sizes.astype(np.int32), rng.integers(20, 2000, (number, 2), np.int32)


@jax.jit
def _of(model, images, sizes, originals):
    found = model(normalize_images(images, sizes, MEAN, STD), sizes)
    return detections(found.logits[-1], found.boxes[-1], originals)


def _assert_equal(found, expected, originals):
    expected = jax.device_get(expected)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
    scale = originals[:, None, [1, 0, 1, 0]]
    np.testing.assert_allclose(found.boxes / scale, expected.boxes / scale, atol=1e-5)
    sure = expected.scores > 0.5  # only there can no rounding swap two labels
    np.testing.assert_array_equal(found.labels[sure], expected.labels[sure])


def _resized(size, *limits):
    """The (height, width) of one image after resizing."""
    return tuple(resized(np.array(size), *limits).tolist())


@pytest.fixture
def random_model(rng, rngs):
    """A factory of tiny models, every value of which is random, frozen statistics included."""

    def build(norm="group"):
        config = tiny_config()
        config.model.backbone.norm = norm
        config.model.pixel_mean, config.model.pixel_std = MEAN, STD
        model = DETR(config.model, rngs=rngs)
        graph, values = nnx.split(model)

        def noisy(path, x):
            x = np.asarray(x) + rng.normal(0, 0.2, x.shape).astype(np.float32)
            return abs(x) + np.float32(0.1) if path[-1].key == "variance" else x

        return nnx.merge(graph, jax.tree_util.tree_map_with_path(noisy, nnx.as_pure(values))), config

    return build


@pytest.mark.parametrize(("norm", "beside"), [("group", False), ("frozen_batch", True)])
def test_an_artefact_gives_the_detections_of_the_model_without_this_package(random_model, rng, tmp_path, norm, beside):
    model, config = random_model(norm)
    buckets = ((32, 32), (24, 40)) if beside else ((32, 32),)
    export_model(model, config, tmp_path / "out", buckets=buckets, weights_beside=beside, platforms=("cpu", "cuda"))
    assert (tmp_path / "out" / "weights.npz").exists() == beside
    batches = [_batch(rng, number, buckets[i % len(buckets)]) for i, number in enumerate((3, 1))]
    inputs = {f"{n}{i}": x for i, one in enumerate(batches) for n, x in zip(NAMES, one, strict=True)}
    np.savez(tmp_path / "inputs.npz", **inputs)
    command = [sys.executable, "-c", PROGRAM, tmp_path / "out", tmp_path / "inputs.npz", tmp_path / "found.npz"]
    subprocess.run(command, check=True, timeout=120, cwd=tmp_path, env={"JAX_PLATFORMS": "cpu"})
    with np.load(tmp_path / "found.npz") as found:
        for i, batch in enumerate(batches):
            one = type("Found", (), {name: found[f"{name}{i}"] for name in ("boxes", "scores", "labels")})
            _assert_equal(one, _of(model, *batch), batch[2])


def test_an_artefact_gives_the_category_ids_of_the_data(random_model, rng, tmp_path):
    model, config = random_model()
    ids = {label: int(number) for label, number in enumerate(rng.integers(10**6, 2**52, config.model.num_classes))}
    names = {label: f"class {label}" for label in ids}
    export_model(
        *(model, config, tmp_path / "out"),
        buckets=((32, 32),),
        platforms=("cpu",),
        class_names=names,
        category_ids=ids,
    )
    detector = Detector(tmp_path / "out")
    batch = _batch(rng, 2, (32, 32))
    found = detector(*batch)
    expected = np.asarray(_of(model, *batch).labels)
    assert found.labels.tolist() == [[ids[label] for label in row] for row in expected.tolist()]
    assert detector.names == {ids[label]: name for label, name in names.items()}


def test_results_are_in_the_order_of_images_of_any_size(random_model, rng, tmp_path):
    model, config = random_model()
    config.data = dataclasses.replace(config.data, val_short_side=24, max_long_side=40, val_buckets=())
    assert default_buckets(config) == [(24, 48), (48, 24)]
    export_model(model, config, tmp_path / "out", platforms=("cpu",))
    detector = Detector(tmp_path / "out")
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((24, 30), (60, 24), (24, 40), (100, 31))]
    found = detector.predict([images[0], Image.fromarray(images[1]), *images[2:]], 0)
    for image, one in zip(images, found, strict=True):
        small = detector.resize(image)
        assert small.shape[:2] == _resized(image.shape[:2], 24, 40)
        by_hand = np.zeros((1, *((48, 24) if small.shape[0] > small.shape[1] else (24, 48)), 3), np.uint8)
        by_hand[0, : small.shape[0], : small.shape[1]] = small
        sizes, originals = np.array([small.shape[:2]]), np.array([image.shape[:2]])
        assert (np.diff(one.scores) <= 0).all()
        expected = jax.device_get(_of(model, by_hand, sizes, originals))
        apart = np.abs(one.boxes[:, None] - expected.boxes[0]).max(axis=-1) / max(image.shape)
        apart = np.maximum(apart, np.abs(one.scores[:, None] - expected.scores[0]))  # [found, expected]
        assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 1e-5
    threshold = float(np.sort(found[0].scores)[1:3].mean())  # between two of them
    (kept,) = detector.predict(images[:1], threshold)
    np.testing.assert_allclose(kept.scores, found[0].scores[found[0].scores >= threshold], atol=1e-6)


def test_a_model_that_does_not_resize_is_exported_for_images_up_to_its_longest_side(random_model, rng, tmp_path):
    model, config = random_model()
    config.data = dataclasses.replace(config.data, val_short_side=0, max_long_side=100, val_buckets=())
    export_model(model, config, tmp_path / "out", platforms=("cpu",))
    detector = Detector(tmp_path / "out")
    for size in ((100, 100), (100, 12), (9, 70), (30, 31)):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        (found,) = detector.predict([image], 0)
        expected = jax.device_get(_of(model, image[None], np.array([size]), np.array([size])))
        np.testing.assert_allclose(np.sort(found.scores), np.sort(expected.scores[0]), atol=1e-5)


def test_the_loader_resizes_as_pillow_does_up_to_rounding(random_model, rng, tmp_path):
    model, config = random_model()
    config.data = dataclasses.replace(config.data, val_short_side=40, max_long_side=80)
    export_model(model, config, tmp_path / "out", platforms=("cpu",))
    image = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((150, 97)))
    theirs = np.asarray(Image.fromarray(image).resize(_resized((97, 150), 40, 80)[::-1], Image.Resampling.BILINEAR))
    ours = Detector(tmp_path / "out").resize(image)
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("rounding", ["original", "transformers", "nearest", "down"])
def test_the_loader_rounds_sides_as_validation_does(rng, rounding):
    detector = object.__new__(Detector)
    for _ in range(20):
        size, (short, long) = tuple(map(int, rng.integers(20, 90, 2))), sorted(map(int, rng.integers(20, 90, 2)))
        detector.description = {"short_side": short, "max_long_side": long, "resize_rounding": rounding}
        assert detector.resize(np.zeros((*size, 3), np.uint8)).shape[:2] == _resized(size, short, long, rounding)


def test_the_loader_rejects_arrays_and_images_of_the_wrong_shape(random_model, tmp_path):
    model, config = random_model()
    export_model(model, config, tmp_path / "out", platforms=("cpu",))
    detector = Detector(tmp_path / "out")
    with pytest.raises(ValueError, match=r"uint8 \[1, 8, 8, 3\]: give uint8 \[B, H, W, 3\].*\(32, 32\)"):
        detector(np.zeros((1, 8, 8, 3), np.uint8), np.array([[8, 8]]), np.array([[8, 8]]))
    with pytest.raises(ValueError, match=r"float64 \[8, 8, 3\]"):
        detector.predict([np.zeros((8, 8, 3))])
    with pytest.raises(ValueError, match=r"33 x 8 pixels .* is larger than every bucket.*\(32, 32\)"):
        detector.predict([np.zeros((33, 8, 3), np.uint8)])


def test_the_default_buckets_hold_every_resized_image_up_to_an_aspect_ratio_of_10(rng):
    config = Config(data=DataConfig(val_short_side=800, max_long_side=1333))
    buckets = default_buckets(config)
    assert buckets == [(800, 1344), (1344, 800)]
    for _ in range(2000):
        short = int(rng.integers(50, 2000))
        size = rng.permutation([short, int(short * rng.uniform(1, 10))])
        height, width = _resized(size, 800, 1333)
        assert any(height <= bucket[0] and width <= bucket[1] for bucket in buckets), size


def test_the_command_writes_an_artefact_with_the_ema(random_model, tmp_path, rng):
    model, config = random_model()
    values = nnx.as_pure(nnx.state(model))
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.class_names = {0: "kreis", 2: "dreieck \u25b3"}
    checkpoints.save(3, {"params": jax.tree.map(np.zeros_like, values), "ema": values}, config)
    checkpoints.close()
    arguments = ["export", str(tmp_path / "run"), str(tmp_path / "out"), "--platforms", "cpu", "--bucket", "40x24"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "model_40x24.stablehlo" in result.output
    assert json.loads((tmp_path / "out" / "export.json").read_text())["buckets"] == [[40, 24]]
    batch = _batch(rng, 2, (40, 24))
    detector = Detector(tmp_path / "out")
    assert detector.names == {0: "kreis", 2: "dreieck \u25b3"}
    _assert_equal(detector(*batch), _of(model, *batch), batch[2])
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "exists already" in result.output


def test_a_wrong_argument_of_an_export_raises_an_error_before_anything_is_written(random_model, tmp_path):
    model, config = random_model()
    with pytest.raises(ExportError, match=r"'gpu' is not known.*cuda"):
        export_model(model, config, tmp_path / "out", platforms=("gpu",))
    with pytest.raises(ConfigError, match=r"bucket \(30, 32\).*multiples of 4"):
        export_model(model, config, tmp_path / "out", buckets=((30, 32),))
    result = CliRunner().invoke(main, ["export", str(tmp_path), str(tmp_path / "out"), "--bucket", "big"])
    assert result.exit_code == 2
    assert "'big' is not understood" in result.output
    result = CliRunner().invoke(main, ["export", str(tmp_path / "nothing"), str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "does not exist" in result.output
    assert not (tmp_path / "out").exists()
