"""Detections in pixels, compared with plain numpy."""

import jax.numpy as jnp
import numpy as np

from detr_jax.postprocess import detections, top_detections


def test_every_query_gives_its_most_probable_class_and_its_box_in_pixels(rng):
    batch, queries, classes = 3, 6, 4
    logits = rng.normal(scale=3, size=(batch, queries, classes + 1)).astype(np.float32)
    logits[0, 0, -1] = 20.0  # "no object" is the most probable, but it is never a detection
    boxes = rng.uniform(0, 1, (batch, queries, 4)).astype(np.float32)
    sizes = rng.integers(50, 900, (batch, 2))

    found = detections(jnp.asarray(logits), jnp.asarray(boxes), jnp.asarray(sizes, jnp.int32))

    for image, query in np.ndindex(batch, queries):
        exponentials = np.exp(logits[image, query].astype(np.float64))
        probabilities = (exponentials / exponentials.sum())[:-1]
        assert found.labels[image, query] == probabilities.argmax()
        np.testing.assert_allclose(found.scores[image, query], probabilities.max(), rtol=1e-4)
        (height, width), (cx, cy, w, h) = sizes[image], boxes[image, query]
        corners = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
        np.testing.assert_allclose(found.boxes[image, query], corners, rtol=1e-4, atol=1e-2)


def test_boxes_that_reach_outside_of_the_image_are_not_clipped():
    found = detections(jnp.zeros((1, 1, 3)), jnp.asarray([[[0.0, 1.0, 0.5, 0.5]]]), jnp.asarray([[100, 200]]))
    np.testing.assert_allclose(found.boxes, [[[-50, 75, 50, 125]]])
    assert found.labels.dtype == jnp.int32
    assert found.boxes.dtype == found.scores.dtype == jnp.float32


def test_the_most_probable_pairs_of_query_and_class_are_taken(rng):
    batch, queries, classes = 3, 6, 4
    logits = rng.normal(scale=3, size=(batch, queries, classes)).astype(np.float32)
    boxes = rng.uniform(0, 1, (batch, queries, 4)).astype(np.float32)
    sizes = rng.integers(50, 900, (batch, 2))

    found = top_detections(jnp.asarray(logits), jnp.asarray(boxes), jnp.asarray(sizes, jnp.int32), 10)

    for image in range(batch):
        pairs = sorted(np.ndindex(queries, classes), key=lambda pair: -logits[image][pair])[:10]
        for place, (query, label) in enumerate(pairs):
            assert found.labels[image, place] == label
            probability = 1 / (1 + np.exp(-logits[image, query, label].astype(np.float64)))
            np.testing.assert_allclose(found.scores[image, place], probability, rtol=1e-5)
            (height, width), (cx, cy, w, h) = sizes[image], boxes[image, query]
            corners = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
            np.testing.assert_allclose(found.boxes[image, place], corners, rtol=1e-4, atol=1e-2)


def test_there_are_no_more_detections_than_pairs():
    found = top_detections(jnp.zeros((2, 3, 1)), jnp.full((2, 3, 4), 0.5), jnp.full((2, 2), 100), 100)
    assert found.scores.shape == (2, 3)
