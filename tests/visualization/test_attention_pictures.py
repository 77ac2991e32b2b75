import numpy as np
import pytest

from detr_jax.results import ImageAttention, ImageDetections
from detr_jax.visualization.attention import attention_sheet, heat_map


def test_heat_covers_its_cell_also_if_the_last_cells_extend_beyond_the_border(rng):
    for _ in range(20):
        stride = int(rng.integers(8, 33))
        height, width = rng.integers(3 * stride, 9 * stride, 2).tolist()
        rows, columns = -(-height // stride), -(-width // stride)
        row, column = int(rng.integers(rows - 1)), int(rng.integers(columns - 1))  # whole cells
        weights = np.zeros((rows, columns), np.float32)
        weights[row, column] = rng.uniform(0.1, 0.9)
        scale = float(rng.uniform(1, 2))
        picture = heat_map(np.zeros((height, width, 3), np.uint8), weights, (height / stride, width / stride), scale)
        heat = np.asarray(picture, float).sum(axis=2)
        y, x = np.argwhere(heat > 0.98 * heat.max()).mean(axis=0)
        wanted = np.array([row + 0.5, column + 0.5]) * stride * np.array(picture.size[::-1]) / (height, width)
        at_border = np.array([row, column]) == 0
        np.testing.assert_allclose(np.array([y, x])[~at_border] + 0.5, wanted[~at_border], atol=2)


def test_points_are_by_default_the_centres_of_the_highest_scoring_objects(rng):
    boxes = np.array([[-50, 10, 10, 20], [5, 5, 25, 15]], np.float32)  # the centre of the first lies outside
    found = ImageDetections(boxes, np.array([0.9, 0.8], np.float32), np.array([0, 1]), ("a", "b"), (32, 48))
    encoder = rng.random((2, 3, 2, 3)).astype(np.float32)
    attention = ImageAttention(np.zeros((32, 48, 3), np.uint8), found, encoder[0, :2], encoder, (2.0, 3.0))
    by_default, given = (attention_sheet(attention, points) for points in (None, [(0.0, 15.0), (15.0, 10.0)]))
    np.testing.assert_array_equal(by_default, given)
    with pytest.raises(ValueError, match="outside of the image"):
        attention_sheet(attention, [(48.0, 0.0)])


def test_the_picture_shows_the_eight_highest_scores_by_default(rng):
    n = 11
    corner = rng.uniform(0, 20, (n, 2))
    boxes = np.concatenate([corner, corner + 9], axis=1).astype(np.float32)
    scores = np.sort(rng.random(n).astype(np.float32))[::-1]
    labels = rng.integers(0, 3, n)
    found = ImageDetections(boxes, scores, labels, tuple("abc"[label] for label in labels), (32, 48))
    attention = ImageAttention(np.zeros((32, 48, 3), np.uint8), found, rng.random((n, 2, 3)), None, (2.0, 3.0))
    first = ImageDetections(boxes[:8], scores[:8], labels[:8], found.names[:8], (32, 48))
    eight = ImageAttention(attention.image, first, attention.decoder[:8], None, (2.0, 3.0))
    pictures = [np.asarray(one.draw()) for one in (attention, eight)]
    columns = 330
    assert pictures[0].shape == pictures[1].shape == np.asarray(attention_sheet(attention)).shape
    np.testing.assert_array_equal(pictures[0][:, columns:], pictures[1][:, columns:])
    assert not np.array_equal(*pictures)  # the first title says that it is 8 of 11
    all_shown, two = (
        np.asarray(
            attention.draw(
                max_detections=most,
            )
        ).shape[0]
        for most in (99, 2)
    )
    assert (all_shown, two) == (pictures[0].shape[0], pictures[0].shape[0] // 3)
    changed = ImageDetections(boxes, scores * np.float32(0.5), labels, found.names, (32, 48))
    other = np.asarray(ImageAttention(attention.image, changed, attention.decoder, None, (2.0, 3.0)).draw())
    assert not np.array_equal(other[:22, columns:], pictures[0][:22, columns:])  # the titles contain the scores
