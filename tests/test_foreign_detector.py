"""A detector class of another family works in prediction, validation and export without an edit in the package."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detr_jax import Detector
from detr_jax.checkpoints import Checkpoints
from detr_jax.config import ConfigError, ModelConfig
from detr_jax.data import open_source
from detr_jax.evaluation.validator import Validator
from detr_jax.export import export_model
from detr_jax.export_loader import Detector as ExportedDetector
from detr_jax.inference import AttentionError
from detr_jax.sharding import create_mesh
from detr_jax.structures import Detections, Outputs, Predictions
from detr_jax.testing import tiny_config

STRIDE, LIMIT = 8, 64


class DenseDetector(nnx.Module):
    """A detector without queries: every cell gives one box, with sigmoid scores. It has other fields than DETR."""

    def __init__(self, config, *, rngs):
        self.cells = config.max_detections
        self.head = nnx.Linear(3, config.num_classes + 4, rngs=rngs)

    def normalize(self, images, sizes):
        inside = (jnp.arange(images.shape[1])[None, :, None] < sizes[:, 0, None, None]) & (
            jnp.arange(images.shape[2])[None, None] < sizes[:, 1, None, None]
        )
        return jnp.where(inside[..., None], images.astype(jnp.float32) / 255, 0.0)

    def __call__(self, images, sizes, *, targets=None, rngs=None):
        batch, _, _, channels = images.shape
        cells = images[:, ::STRIDE, ::STRIDE].reshape(batch, -1, channels)[:, : self.cells]
        outputs = self.head(cells)[None]
        return Outputs(Predictions(outputs[..., 4:], jax.nn.sigmoid(outputs[..., :4])))

    def detections(self, outputs, original_sizes):
        scores = jax.nn.sigmoid(outputs.logits[-1])
        boxes = outputs.boxes[-1] * original_sizes.astype(jnp.float32)[:, None, jnp.array([1, 0, 1, 0])]
        return Detections(boxes, scores.max(axis=-1), scores.argmax(axis=-1).astype(jnp.int32))


@dataclass(kw_only=True)
class DenseConfig:
    """The public members of a detector's configuration, and nothing else."""

    num_classes: int = 3
    stride: int = STRIDE
    max_detections: int = 6
    largest_bucket: int | None = LIMIT

    def build(self, *, rngs):
        return DenseDetector(self, rngs=rngs)


@pytest.fixture
def config():
    config = tiny_config()
    config.model = DenseConfig()
    return config


@pytest.fixture
def model(config, rngs):
    return config.model.build(rngs=rngs)


def _by_definition(model, image):
    """The detections in one image that is not resized, with numpy: boxes [n, 4], scores [n], labels [n]."""
    height, width, _ = image.shape
    padded = np.zeros((32, 32, 3))
    padded[:height, :width] = image / 255
    cells = padded[::STRIDE, ::STRIDE].reshape(-1, 3)[: model.cells]
    outputs = 1 / (1 + np.exp(-(cells @ np.asarray(model.head.kernel[...]) + np.asarray(model.head.bias[...]))))
    return outputs[:, :4] * [width, height, width, height], outputs[:, 4:].max(axis=1), outputs[:, 4:].argmax(axis=1)


def _assert_equal(found, expected):
    boxes, scores, labels = expected
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_allclose(found.scores, scores[order], atol=1e-5)
    apart = np.abs(found.boxes[:, None] - boxes).max(axis=-1)  # equal scores can be in any order
    assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 1e-3
    assert sorted(found.labels.tolist()) == sorted(labels.tolist())


def _image(rng):
    return rng.integers(0, 256, (*rng.integers(9, 33, 2), 3), dtype=np.uint8)


def test_the_detector_class_predicts_with_it(model, config, rng):
    detector = Detector(model, config, batch_size=2)
    images = [_image(rng) for _ in range(3)]
    for image, found in zip(images, detector.predict(images, 0), strict=True):
        _assert_equal(found, _by_definition(model, image))
    assert "DenseDetector, 6 detections" in repr(detector)


def test_the_largest_bucket_and_the_stride_limit_the_buckets_of_prediction(model, config):
    config.data = dataclasses.replace(config.data, val_buckets=(), val_short_side=50, max_long_side=90)
    sides = {side for bucket in Detector(model, config).buckets for side in bucket}
    assert max(sides) == LIMIT
    assert all(side % STRIDE == 0 for side in sides)


def test_attention_of_a_detector_without_attention_maps_is_refused_by_name(model, config, rng):
    with pytest.raises(AttentionError, match="DenseDetector has no attention maps"):
        Detector(model, config).attention(_image(rng))


def test_validation_detects_and_measures_with_it(model, config):
    source = open_source(config, "val")
    graph, params = nnx.split(model)
    validator = Validator(config, source, graph, create_mesh(jax.devices()[:1]))
    found = validator.detect((nnx.as_pure(params),))
    assert found.boxes.shape == (len(source), 6, 4)
    index_of = {image_id: index for index, image_id in enumerate(source.image_ids)}
    for image_id, scores in zip(found.image_ids.tolist(), found.scores, strict=True):
        _, expected, _ = _by_definition(model, source[index_of[image_id]].image)
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert validator.evaluate(found)


def test_an_export_of_it_returns_the_same_detections(model, config, rng, tmp_path):
    export_model(model, config, tmp_path / "out", platforms=("cpu",))
    images = [_image(rng) for _ in range(2)]
    for image, found in zip(images, ExportedDetector(tmp_path / "out").predict(images, 0), strict=True):
        _assert_equal(found, _by_definition(model, image))
    with pytest.raises(ConfigError, match=r"bucket \(36, 32\) .* multiples of 8"):
        export_model(model, config, tmp_path / "other", buckets=[(36, 32)])
    with pytest.raises(ConfigError, match=r"bucket \(32, 72\) .* at most 64 pixels"):
        export_model(model, config, tmp_path / "other", buckets=[(32, 72)])


@dataclass(kw_only=True)
class StoredConfig(ModelConfig):
    """A configuration that a checkpoint can hold."""

    def build(self, *, rngs):
        return DenseDetector(self, rngs=rngs)


def test_a_checkpoint_of_it_gives_its_own_class_back(rng, rngs, tmp_path):
    config = tiny_config()
    config.model = StoredConfig(num_classes=3, num_queries=6)
    model = config.model.build(rngs=rngs)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(1, {"params": nnx.as_pure(nnx.state(model))}, config)
    checkpoints.close()
    detector = Detector.from_checkpoint(tmp_path)
    assert type(detector.model) is DenseDetector
    image = _image(rng)
    _assert_equal(detector.predict(image, 0), _by_definition(model, image))
