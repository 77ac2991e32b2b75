"""Groupings against brute force. All images are used equally often."""

import collections
import itertools

import numpy as np
import pytest

from detr_jax.data import grouping
from detr_jax.data.grouping import NO_IMAGE

BUCKETS = [(32, 64), (64, 32), (64, 64), (96, 64), (96, 96)]


def group(sizes, buckets, batch_size, rng):
    """The batches as pairs of a bucket and indices."""
    bucket_of, images = grouping.group(sizes, buckets, batch_size, rng)
    return [(buckets[bucket], batch) for bucket, batch in zip(bucket_of, images, strict=True)]


def group_all(sizes, buckets, batch_size):
    bucket_of, images = grouping.group_all(sizes, buckets, batch_size)
    return [(buckets[bucket], batch[batch != NO_IMAGE]) for bucket, batch in zip(bucket_of, images, strict=True)]


def padded_area(batches, batch_size):
    return sum(batch_size * height * width for (height, width), _ in batches)


def least_padded_area(sizes, batch_size):
    """The minimum over all multisets of buckets that hold the images, by Hall's condition on every set of buckets."""
    holds = (np.array(BUCKETS) >= sizes[:, None]).all(-1)
    subsets = np.array(list(itertools.product([False, True], repeat=len(BUCKETS))))
    demand = (holds[:, None] <= subsets).all(-1).sum(0)  # images that fit only buckets of the set
    areas = np.prod(BUCKETS, axis=1)
    best = np.inf
    steps = len(sizes) // batch_size
    for chosen in itertools.combinations_with_replacement(range(len(BUCKETS)), steps):
        numbers = np.bincount(chosen, minlength=len(BUCKETS))
        if (subsets @ numbers * batch_size >= demand).all():
            best = min(best, numbers @ areas * batch_size)
    return best


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_groups_are_full_contain_each_image_once_and_have_the_least_padding(rng, batch_size):
    for _ in range(3):
        sizes = rng.integers(10, 97, (batch_size * 6, 2))
        batches = group(sizes, BUCKETS, batch_size, rng)
        assert [len(images) for _, images in batches] == [batch_size] * 6
        assert sorted(np.concatenate([images for _, images in batches])) == list(range(len(sizes)))
        for bucket, images in batches:
            assert (sizes[images] <= bucket).all()
        assert padded_area(batches, batch_size) <= 1.0051 * least_padded_area(sizes, batch_size)


@pytest.mark.parametrize("batch_size", [1, 2, 8, 32])
def test_groups_have_as_little_padding_as_the_integer_program(rng, batch_size, monkeypatch):
    """With few and with many batches per bucket, both are within half a percent of the least padding."""
    needed = []
    program = grouping._best_shares
    monkeypatch.setattr(grouping, "_best_shares", lambda *args: needed.append(args) or program(*args))
    for number in (40, 400, 4000):
        sizes = rng.integers(10, 97, (number, 2))
        quick = group(sizes, BUCKETS, batch_size, np.random.default_rng(1))
        with monkeypatch.context() as patch:
            too_many = np.full((1, len(BUCKETS)), 10**9)
            patch.setattr(grouping, "_shares_in_one_pass", lambda *_, too_many=too_many: too_many)
            slow = group(sizes, BUCKETS, batch_size, np.random.default_rng(1))
        assert len(needed) > 0
        assert padded_area(quick, batch_size) <= 1.0051 * padded_area(slow, batch_size)
        assert padded_area(slow, batch_size) <= 1.0051 * padded_area(quick, batch_size)
    calls = len(needed)
    group(rng.integers(10, 97, (4000 * batch_size, 2)), BUCKETS, batch_size, rng)
    assert len(needed) == calls, "so many images need no integer program"


def test_distinct_rows_equal_numpys_unique(rng):
    for columns in (1, 5, 8, 9, 70):
        rows = rng.random((300, columns)) < rng.random()
        rows[150:] = rows[:150]
        expected, index = np.unique(rows, axis=0, return_inverse=True)
        found, found_index = grouping._distinct_rows(rows)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found_index, index.ravel())


def test_dropped_images_are_chosen_evenly(rng):
    sizes = rng.integers(10, 97, (23, 2))
    left_out = collections.Counter()
    for _ in range(120):
        used = np.concatenate([images for _, images in group(sizes, BUCKETS, 4, rng)])
        assert len(set(used)) == len(used) == 20
        left_out.update(set(range(23)) - set(used))
    expected = 120 * 3 / 23
    assert max(abs(left_out[i] - expected) for i in range(23)) < 5 * np.sqrt(expected)


def test_the_images_of_a_batch_and_the_order_of_the_batches_are_random(rng):
    sizes = np.array([[20, 60]] * 12 + [[60, 20]] * 12)
    partners = {frozenset(images) for _ in range(20) for _, images in group(sizes, BUCKETS, 3, rng)}
    assert len(partners) > 60
    first = collections.Counter(group(sizes, BUCKETS, 3, rng)[0][0] for _ in range(50))
    assert min(first[(32, 64)], first[(64, 32)]) > 8


def test_the_same_generator_gives_the_same_groups(rng):
    sizes = rng.integers(10, 97, (50, 2))
    (one, other) = (group(sizes, BUCKETS, 4, np.random.default_rng(5)) for _ in range(2))
    for (bucket, images), (same_bucket, same_images) in zip(one, other, strict=True):
        assert bucket == same_bucket
        np.testing.assert_array_equal(images, same_images)


def test_shapes_without_a_common_bucket_fill_their_batches_with_their_own_images(rng):
    sizes = np.array([[20, 60]] * 7 + [[60, 20]] * 5)
    batches = group(sizes, BUCKETS[:2], 4, rng)
    assert len(batches) == 3
    for bucket, images in batches:
        assert len(images) == 4
        assert (sizes[images] <= bucket).all()


def test_group_all_uses_each_image_once_and_in_order(rng):
    sizes = rng.integers(10, 97, (50, 2))
    batches = group_all(sizes, BUCKETS, 8)
    assert sorted(np.concatenate([images for _, images in batches])) == list(range(50))
    assert len(batches) == 7
    for bucket, images in batches:
        assert len(images) <= 8
        assert (sizes[images] <= bucket).all()
        assert (np.diff(images) > 0).all()
    assert len(group_all(sizes[:1], BUCKETS, 8)) == 1
    both = group_all(np.array([[20, 60]] * 3 + [[60, 20]] * 3), BUCKETS[:2], 4)
    assert [images.tolist() for _, images in both] == [[0, 1, 2], [3, 4, 5]]
