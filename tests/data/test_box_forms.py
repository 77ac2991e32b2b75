"""Boxes in each form: the correct form is never doubted, and another form is recognised."""

import numpy as np
import pytest

from detr_jax.data.box_forms import doubt_about_boxes, normalized_boxes


@pytest.fixture
def boxes(rng):
    """xywh [400, 4] within images of (height, width) [400, 2], from tiny to the whole image."""
    sizes = rng.integers(100, 900, (400, 2))
    low, high = np.sort(rng.random((2, 400, 2)), axis=0) * sizes[None, :, ::-1]
    return np.concatenate([low, np.maximum(high - low, 1)], axis=1), sizes


def test_correct_boxes_are_not_doubted_even_if_some_reach_beyond_their_image(rng, boxes):
    xywh, sizes = boxes
    assert doubt_about_boxes(xywh, sizes) is None
    assert normalized_boxes(xywh, sizes) is None
    noisy = xywh + rng.normal(0, 5, xywh.shape) * (rng.random((len(xywh), 1)) < 0.3)
    assert doubt_about_boxes(noisy, sizes) is None


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1), ["two corners", "[x0, y0, x1, y1]"]),
        (lambda b: np.concatenate([b[:, :2] + b[:, 2:] / 2, b[:, 2:]], axis=1), ["centre and size", "[cx, cy,"]),
    ],
)
def test_boxes_in_another_form_are_recognised(boxes, form, words):
    xywh, sizes = boxes
    doubt = doubt_about_boxes(form(xywh), sizes)
    assert all(word in doubt.sentence for word in words)
    assert f"of {len(xywh)} boxes" in doubt.sentence
    assert doubt.certain
    few = doubt_about_boxes(form(xywh)[:8], sizes[:8])
    assert few is None or not few.certain, "eight boxes prove nothing"


def test_normalised_boxes_are_recognised(boxes):
    xywh, sizes = boxes
    scale = np.tile(sizes[:, ::-1], 2)
    assert "normalised to 0..1" in normalized_boxes(xywh / scale, sizes)
    assert normalized_boxes(np.zeros((0, 4)), np.zeros((0, 2))) is None
    assert normalized_boxes(np.array([[0, 0, 1, 1.0]]), np.array([[2, 2]])) is None, "a tiny image"
