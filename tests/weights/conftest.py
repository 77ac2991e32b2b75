from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.weights.fixture_images import BUCKET, SIZES, normalized, padded

FOLDER = Path(__file__).parent / "fixtures"


class Fixture(NamedTuple):
    """A small model of transformers, two images and its outputs. `make_fixtures` made them."""

    weights: dict[str, np.ndarray]
    images: list[np.ndarray]
    outputs: dict[str, np.ndarray]

    def case(self, name: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Images [B, H, W, 3] and sizes [B, 2] of "batch", "alone0" or "alone1", and the outputs wanted."""
        expected = {key.removeprefix(f"{name}/"): x for key, x in self.outputs.items() if key.startswith(f"{name}/")}
        if name.endswith("batch"):
            return padded(self.images, BUCKET), np.array(SIZES), expected
        i = int(name[-1])
        return normalized(self.images[i])[None], np.array(SIZES[i : i + 1]), expected


def load_fixture(name: str) -> Fixture:
    """The content of a fixture file."""
    content = load_file(FOLDER / f"{name}.safetensors")
    weights = {key.removeprefix("weights/"): x for key, x in content.items() if key.startswith("weights/")}
    images = [content["image0"], content["image1"]]
    return Fixture(weights, images, {key: x for key, x in content.items() if "/" in key and "weights/" not in key})


@pytest.fixture(scope="package")
def bottleneck() -> Fixture:
    """Bottleneck blocks, sine positions, 80 classes."""
    return load_fixture("bottleneck")


@pytest.fixture(scope="package")
def basic_learned() -> Fixture:
    """Basic blocks, learned positions, 80 classes."""
    return load_fixture("basic_learned")
