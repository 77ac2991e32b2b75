"""The panoptic post-processing against a plain reading of the original's algorithm, segment by segment."""

import numpy as np
import pytest

from detr_jax.inference.masks import panoptic_candidates
from detr_jax.panoptic import panoptic_segments
from tests.test_masks import interpolated


def original(logits, labels, stuff, processed, size):
    """The steps of the original, one after another, on the whole processed image."""
    masks = np.array([interpolated(one, processed) for one in logits])
    labels = list(labels)

    def ids_of(masks, labels, merge):
        if not len(masks):
            return np.zeros(processed, int)
        owner = masks.argmax(axis=0)
        if merge:
            for label in set(labels) & set(stuff):
                same = [i for i, x in enumerate(labels) if x == label]
                for other in same[1:]:
                    owner[owner == other] = same[0]
        return owner

    def resized(owner):
        rows = np.floor((np.arange(size[0]) + 0.5) * processed[0] / size[0]).astype(int)
        columns = np.floor((np.arange(size[1]) + 0.5) * processed[1] / size[1]).astype(int)
        return owner[np.ix_(rows, columns)]

    owner, kept = resized(ids_of(masks, labels, True)), list(range(len(labels)))
    while labels:
        areas = [int((owner == i).sum()) for i in range(len(labels))]
        small = [i for i, area in enumerate(areas) if area <= 4]
        if not small:
            break
        keep = [i for i in range(len(labels)) if i not in small]
        masks, labels, kept = masks[keep], [labels[i] for i in keep], [kept[i] for i in keep]
        owner = resized(ids_of(masks, labels, False))
    return owner + 1 if labels else np.zeros(size, int), kept


@pytest.mark.parametrize(("processed", "size"), [((26, 33), (26, 33)), ((26, 33), (41, 50)), ((29, 40), (13, 21))])
@pytest.mark.parametrize("number", [0, 1, 3, 9])
def test_segments_are_the_original_s(processed, size, number, rng):
    cells = tuple(-(-side // 4) for side in processed)
    for _ in range(6):
        logits = rng.normal(size=(number, *cells)).astype(np.float32)
        logits += 2 * rng.normal(size=(number, 1, 1)).astype(np.float32)  # some hardly win a pixel
        labels = rng.integers(0, 5, number)
        found = panoptic_segments(logits, labels, {0, 1, 2}, processed, size)
        expected, kept = original(logits, labels, {0, 1, 2}, processed, size)
        assert found.candidates.tolist() == kept
        different = found.ids != expected
        assert different.mean() < 0.005, "only pixels at which two masks are equal within rounding may differ"
        assert found.areas.tolist() == [int((found.ids == k + 1).sum()) for k in range(len(kept))]
        stuff = [x for x in labels[found.candidates].tolist() if x in {0, 1, 2}]
        assert len(stuff) == len(set(stuff))


def test_pixels_below_a_mask_threshold_belong_to_no_segment(rng):
    logits = rng.normal(size=(3, 8, 8)).astype(np.float32)
    logits[2] -= 20  # wins nothing
    labels = np.array([0, 1, 2])
    everywhere = panoptic_segments(logits, labels, (), (32, 32), (32, 32))
    assert (everywhere.ids > 0).all()
    found = panoptic_segments(logits, labels, (), (32, 32), (32, 32), mask_threshold=0.6)
    best = np.max([interpolated(one, (32, 32)) for one in logits], axis=0)
    sure = np.abs(best - np.log(0.6 / 0.4)) > 1e-4
    np.testing.assert_array_equal((found.ids == 0)[sure], (best < np.log(0.6 / 0.4))[sure])
    nothing = panoptic_segments(logits - 50, labels, (), (32, 32), (32, 32), mask_threshold=0.6)
    assert not nothing.ids.any()
    assert not len(nothing.candidates)


def test_candidates_are_one_per_query_in_the_order_of_queries():
    scores = np.array([0.9, 0.95, 0.3, 0.99, 0.86, 0.85])
    queries = np.array([7, 2, 1, 7, 0, 3])
    assert panoptic_candidates(scores, queries, 0.85).tolist() == [4, 1, 3]
    assert panoptic_candidates(scores, queries, 0.999).tolist() == []
