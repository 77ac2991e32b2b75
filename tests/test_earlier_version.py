"""Runs and configurations that an earlier version wrote (earlier_version/make_fixtures.py) are read and resumed."""

import functools
import json
import tarfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax import Detector
from detr_jax.config import current_path, from_json
from detr_jax.training.loop import train

FOLDER = Path(__file__).parent / "earlier_version"


@pytest.fixture(scope="module")
def extracted(tmp_path_factory) -> Path:
    """The workdir of the earlier version's run, killed after step 6 of 12; tests must not write to it."""
    workdir = tmp_path_factory.mktemp("earlier")
    with tarfile.open(FOLDER / "workdir.tar.xz") as archive:
        archive.extractall(workdir, filter="data")
    return workdir


@pytest.fixture(scope="module")
def predicted() -> dict[str, np.ndarray]:
    """Two images and what the earlier version predicted for each; the names end in the image's index."""
    with np.load(FOLDER / "predictions.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def detector(extracted) -> Detector:
    return Detector.from_checkpoint(extracted)


@pytest.mark.parametrize("index", [0, 1])
def test_a_checkpoint_gives_the_earlier_versions_logits_and_boxes(detector, predicted, index):
    sizes = jnp.array([predicted[f"image{index}"].shape[:2]], jnp.int32)
    model = detector.model
    outputs = jax.jit(lambda images: model(model.normalize(images, sizes), sizes))(predicted[f"padded{index}"])
    np.testing.assert_allclose(outputs.logits, predicted[f"logits{index}"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(outputs.boxes, predicted[f"layer_boxes{index}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", [0, 1])
def test_a_checkpoint_gives_the_earlier_versions_detections(detector, predicted, index):
    image = predicted[f"image{index}"]
    found = detector.predict(image, threshold=0)
    np.testing.assert_array_equal(found.labels, predicted[f"labels{index}"])
    np.testing.assert_allclose(found.scores, predicted[f"scores{index}"], rtol=0, atol=1e-5)
    sides = np.array(image.shape)[[1, 0, 1, 0]]
    np.testing.assert_allclose(found.boxes / sides, predicted[f"boxes{index}"] / sides, rtol=0, atol=1e-5)


def test_a_resumed_run_gives_the_earlier_versions_losses(tmp_path):
    with tarfile.open(FOLDER / "workdir.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    with jax.numpy_dtype_promotion("standard"):  # optax computes powers of floats with integers
        train(from_json((tmp_path / "config.json").read_text()), tmp_path)
    lines, expected = (_read_lines(file) for file in (tmp_path / "metrics.jsonl", FOLDER / "continued.jsonl"))
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, earlier in zip(lines, expected, strict=True):
        losses = {name: value for name, value in earlier.items() if name.startswith("train/loss")}
        for name, value in losses.items():
            assert line[name] == pytest.approx(value, rel=1e-6), f"{name} at step {line['step']}"
        metrics = {name: value for name, value in earlier.items() if name.startswith("val/")}
        assert {name: value for name, value in line.items() if name.startswith("val/")} == metrics


def test_every_field_of_an_earlier_configuration_keeps_its_value():
    text = (FOLDER / "config.json").read_text()
    config = from_json(text)
    fields = _fields(json.loads(text))
    assert len(fields) > 90
    for path, value in fields.items():
        assert _field(config, current_path(path)) == value, path


def _read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def _fields(values: Any, path: str = "") -> dict[str, Any]:
    """The values of a JSON object by path, such as ``data.shapes.seed``; lists become tuples."""
    if not isinstance(values, dict):
        return {path: _tuples(values)}
    return {k: v for name, value in values.items() for k, v in _fields(value, f"{path}.{name}".lstrip(".")).items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _field(config: Any, path: str) -> Any:
    """A value of the configuration, whose parts are dataclasses or dictionaries."""

    def get(node: Any, name: str) -> Any:
        return node[name] if isinstance(node, dict) else getattr(node, name)

    return functools.reduce(get, path.split("."), config)
