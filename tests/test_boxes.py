"""Box formats, areas and overlaps, against scalar arithmetic from the definitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.boxes import area, cxcywh_to_xyxy, generalized_iou, iou, xyxy_to_cxcywh, xyxy_to_xywh
from detr_jax.testing import reference_giou


def random_boxes(rng, count, scale=1.0):
    """Boxes [count, 4] in corner format, none of them degenerate."""
    corners = rng.uniform(0, 1, (count, 2))
    sizes = rng.uniform(0.05, 0.8, (count, 2))
    return (scale * np.concatenate([corners, corners + sizes], axis=1)).astype(np.float32)


def test_formats_convert_as_defined_and_back(rng):
    corners = random_boxes(rng, 20, scale=640.0)
    centers = np.array([[(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners])
    np.testing.assert_allclose(xyxy_to_cxcywh(jnp.asarray(corners)), centers, rtol=1e-5)
    np.testing.assert_allclose(cxcywh_to_xyxy(jnp.asarray(centers, jnp.float32)), corners, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(xyxy_to_xywh(corners), [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in corners])


@pytest.mark.parametrize("function", [area, cxcywh_to_xyxy, xyxy_to_cxcywh, xyxy_to_xywh])
def test_arrays_of_numpy_and_jax_give_the_same_in_their_own_kind(rng, function):
    boxes = random_boxes(rng, 20)
    of_numpy, of_jax = function(boxes), function(jnp.asarray(boxes))
    assert isinstance(of_numpy, np.ndarray)
    assert isinstance(of_jax, jax.Array)
    assert of_numpy.dtype == of_jax.dtype == np.float32
    np.testing.assert_allclose(of_numpy, of_jax, rtol=1e-6)


def test_iou_of_all_pairs_in_numpy_and_jax_follows_the_definition(rng):
    def unit_squares(box):
        return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))

    corner = rng.integers(0, 10, (8, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 10, (8, 2))], axis=1)
    squares = list(map(unit_squares, boxes.tolist()))
    expected = [[len(a & b) / len(a | b) for b in squares] for a in squares]
    for array in (boxes.astype(np.float32), jnp.asarray(boxes, jnp.float32)):
        np.testing.assert_allclose(iou(array[:, None], array[None]), expected, rtol=1e-6)


def test_formats_keep_leading_dimensions(rng):
    boxes = jnp.asarray(random_boxes(rng, 24).reshape(2, 3, 4, 4))
    np.testing.assert_allclose(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes, atol=1e-6)


def test_area_is_width_times_height(rng):
    boxes = random_boxes(rng, 10)
    expected = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes]
    np.testing.assert_allclose(area(jnp.asarray(boxes)), expected, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 800.0])
def test_generalized_iou_of_all_pairs_follows_the_definition(rng, scale):
    a, b = random_boxes(rng, 15, scale), random_boxes(rng, 12, scale)
    expected = [[reference_giou(one, other) for other in b] for one in a]
    np.testing.assert_allclose(generalized_iou(jnp.asarray(a)[:, None], jnp.asarray(b)[None]), expected, atol=1e-5)


def test_generalized_iou_box_by_box_is_the_diagonal_of_all_pairs(rng):
    a, b = jnp.asarray(random_boxes(rng, 9)), jnp.asarray(random_boxes(rng, 9))
    pairs = generalized_iou(a[:, None], b[None])
    np.testing.assert_allclose(generalized_iou(a, b), jnp.diagonal(pairs), atol=1e-6)


def test_generalized_iou_is_one_for_equal_boxes_and_falls_to_minus_one_with_distance(rng):
    boxes = jnp.asarray(random_boxes(rng, 5))
    np.testing.assert_allclose(generalized_iou(boxes, boxes), 1.0, atol=1e-5)
    far = generalized_iou(boxes, boxes + 1000.0)
    assert (far > -1 - 1e-6).all()
    assert (far < -0.99).all()


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.3, 0.3, 0.3, 0.3], [0.3, 0.3, 0.3, 0.3]),
        ([0.3, 0.3, 0.3, 0.3], [0.7, 0.2, 0.7, 0.2]),
        ([0.3, 0.3, 0.3, 0.3], [0.1, 0.1, 0.6, 0.6]),
        ([0.3, 0.1, 0.3, 0.8], [0.3, 0.1, 0.3, 0.8]),
        ([0.3, 0.1, 0.3, 0.8], [0.1, 0.5, 0.9, 0.5]),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]),
    ],
    ids=["same-point", "two-points", "point-in-box", "same-line", "crossing-lines", "point-at-corner"],
)
def test_boxes_without_area_give_finite_values_and_gradients(a, b):
    a, b = jnp.asarray(a), jnp.asarray(b)
    value, gradients = jax.value_and_grad(generalized_iou, argnums=(0, 1))(a, b)
    assert -1 <= value <= 1
    assert np.isfinite(gradients).all()
