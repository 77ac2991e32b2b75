"""A photo gets the boxes and scores that transformers' own processor and model give it, for what processors can say."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import get_image_size_for_max_height_width

from detr_jax import Detector
from detr_jax.cli.weights import import_weights
from detr_jax.data.transforms import resized
from tests.parity.torch_models import SMALL, SMALL_TRANSFORMER, random_detr

PHOTOS = ((333, 171), (150, 470), (96, 128))  # (height, width); two meet the limit of the long side
PROCESSORS = {
    "sizes": {"size": {"shortest_edge": 128, "longest_edge": 192}},
    "mean": {"size": {"shortest_edge": 96, "longest_edge": 160}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3] * 3},
    "levels": {
        "size": {"shortest_edge": 96, "longest_edge": 160},
        "rescale_factor": 1 / 127.5,
        "image_mean": [1.0] * 3,
    },
    "raw": {"size": {"shortest_edge": 96, "longest_edge": 160}, "do_normalize": False},
    "square": {"size": {"max_height": 160, "max_width": 160}},
    "padded": {"size": {"max_height": 160, "max_width": 160}, "pad_size": {"height": 160, "width": 160}},
    "own-size": {"do_resize": False},
}


def _resized(size, *limits):
    """The (height, width) of one image after resizing."""
    return tuple(resized(np.array(size), *limits).tolist())


@pytest.fixture(scope="module")
def model():
    seed = int(np.random.default_rng().integers(2**31))
    print(f"seed {seed}")
    fields = {**SMALL_TRANSFORMER, "num_labels": 3, "id2label": {0: "cat", 1: "dog", 2: "LABEL_2"}}
    return random_detr(np.random.default_rng(seed), SMALL, **fields)


def photo(rng, size):
    coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_detector_sees_what_its_processor_prepares(model, tmp_path, rng, kind):
    processor = DetrImageProcessor(**PROCESSORS[kind])
    processor.save_pretrained(tmp_path / "hub")
    model.save_pretrained(tmp_path / "hub")
    options = ["--no-mask-padding"] if kind == "padded" else []
    import_weights([str(tmp_path / "hub"), str(tmp_path / "out"), *options], standalone_mode=False)
    detector = Detector.from_checkpoint(tmp_path / "out")
    assert detector.class_names == {0: "cat", 1: "dog"}
    for size in PHOTOS if kind == "sizes" else PHOTOS[-1:]:
        image = photo(rng, size)
        with torch.no_grad():
            answer = model(**processor(images=image, return_tensors="pt"))
        (there,) = processor.post_process_object_detection(answer, threshold=0.0, target_sizes=[size])
        here = detector.predict(image, threshold=0)
        order = np.argsort(-there["scores"].numpy(), kind="stable")
        np.testing.assert_allclose(here.scores, there["scores"].numpy()[order], atol=1e-4)
        scale = np.array([size[1], size[0]] * 2)
        np.testing.assert_allclose(here.boxes / scale, there["boxes"].numpy()[order] / scale, atol=1e-4)
        np.testing.assert_array_equal(here.labels, there["labels"].numpy()[order])


def test_sizes_are_those_of_transformers_to_the_pixel(rng):
    for _ in range(2000):
        size = tuple(map(int, rng.integers(30, 1500, 2)))
        short_side, limit = sorted(map(int, rng.integers(30, 1400, 2)))
        expected = get_size_with_aspect_ratio(size, short_side, limit)
        assert _resized(size, short_side, limit, "transformers") == expected or min(expected) == 0
        expected = get_image_size_for_max_height_width(size, limit, limit)
        assert _resized(size, limit, limit, "down") == expected or min(expected) == 0
