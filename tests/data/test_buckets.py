"""Buckets against brute force, and their padding on COCO-like sizes."""

import itertools

import numpy as np
import pytest

from detr_jax.config import DataConfig, ShapesConfig
from detr_jax.data.buckets import (
    bucket_for,
    choose_buckets,
    padded_pixels,
    train_buckets,
    train_sizes,
    useful_share,
    val_buckets,
    val_sizes,
)
from detr_jax.data.shapes import ShapesDataset
from detr_jax.data.transforms import DRAWS, train_geometries

BUCKETS = ((48, 64), (64, 48), (64, 64), (96, 96))


@pytest.fixture
def source(rng):
    """Images with the proportions of photographs."""
    source = ShapesDataset(ShapesConfig(train_images=60), "train")
    short = rng.integers(300, 500, 60)
    long = (short * rng.choice([1, 4 / 3, 4 / 3, 1.5, 16 / 9], 60)).astype(int)
    source.sizes = np.where((rng.random(60) < 0.7)[:, None], np.stack([short, long], 1), np.stack([long, short], 1))
    return source


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((48, 64), (48, 64)),
        ((64, 48), (64, 48)),
        ((10, 10), (48, 64)),
        ((49, 49), (64, 64)),
        ((65, 10), (96, 96)),
        ((96, 96), (96, 96)),
        ((97, 10), None),
    ],
)
def test_the_bucket_is_the_smallest_that_holds_the_image(size, expected):
    assert bucket_for(size, BUCKETS) == expected
    assert bucket_for(size, BUCKETS[::-1]) == expected


def padded_area(sizes, buckets):
    """The padded area by definition, image by image."""
    buckets = [bucket_for(tuple(size), buckets) for size in sizes.tolist()]
    return sum(height * width for height, width in buckets)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_buckets_are_close_to_the_optimum_of_brute_force(rng, count):
    sizes = rng.integers(1, 100, (60, 2)) // rng.integers(1, 4, (60, 1)) + 1
    found = choose_buckets(sizes, count, stride=16)
    assert len(found) <= count
    sides = range(16, 113, 16)
    possible = [
        buckets
        for buckets in itertools.combinations(itertools.product(sides, sides), count)
        if (np.array(buckets) >= sizes[:, None]).all(-1).any(-1).all()
    ]
    best = min(padded_area(sizes, buckets) for buckets in possible)
    assert padded_area(sizes, found) <= 1.02 * best


def test_the_useful_share_is_pixels_of_images_over_pixels_of_their_buckets(rng):
    sizes = rng.integers(1, 97, (50, 2))
    expected = sizes.prod(axis=1).sum() / padded_area(sizes, BUCKETS)
    assert useful_share(sizes, BUCKETS) == pytest.approx(expected, rel=1e-12)


def test_required_sizes_fit_and_sides_are_multiples_of_the_stride(rng):
    sizes = rng.integers(40, 200, (300, 2))
    rare = [(500, 90), (70, 333)]
    found = choose_buckets(sizes, 6, stride=24, must_hold=rare)
    assert all(bucket_for(size, found) for size in rare)
    assert all(side % 24 == 0 for bucket in found for side in bucket)
    assert found == sorted(found, key=lambda bucket: bucket[0] * bucket[1])
    assert found == choose_buckets(sizes, 6, stride=24, must_hold=rare)


def test_few_distinct_sizes_get_one_bucket_each():
    sizes = np.array([[30, 60], [60, 30], [31, 62], [64, 64]])
    assert choose_buckets(sizes, 8, stride=32) == [(32, 64), (64, 32), (64, 64)]
    assert choose_buckets(sizes[:1], 8, stride=32) == [(32, 64)]
    assert choose_buckets(sizes, 1, stride=32) == [(64, 64)]


def test_very_many_distinct_sizes_are_searched_on_a_coarser_grid(rng):
    sizes = rng.integers(1000, 6000, (3000, 2))
    found = choose_buckets(sizes, 10, stride=16)
    assert len(found) <= 10
    assert all(side % 16 == 0 for bucket in found for side in bucket)
    assert useful_share(sizes, found) >= 0.99 * useful_share(sizes, choose_buckets(sizes, 10, stride=256))
    assert all(max(bucket) < 6016 for bucket in found), "no bucket is larger than what it holds"


def test_padded_pixels_for_each_number_of_buckets_are_close_to_the_chosen_buckets(rng):
    sizes = rng.integers(1, 300, (200, 2))
    rare = [(500, 90), (70, 333)]
    found = padded_pixels(sizes, 6, stride=16, must_hold=rare)
    chosen = [padded_area(sizes, choose_buckets(sizes, count, 16, rare)) / 200 for count in range(1, 7)]
    assert len(found) == 6
    assert found[0] == chosen[0]
    assert (found >= 0.999 * np.array(chosen)).all(), "the random exchanges only improve"
    assert (found <= 1.2 * np.array(chosen)).all(), "at most 1.12 in 400 draws"


def test_padded_pixels_stop_when_every_size_has_its_bucket():
    sizes = np.array([[30, 60]] * 3 + [[60, 30]])
    found = padded_pixels(sizes, 8, stride=32)
    assert 2 <= len(found) <= 3, "the first bucket of the search held both"
    assert found.tolist() == [64 * 64, 32 * 64, 32 * 64][: len(found)]


def test_training_sizes_are_distributed_as_the_augmentation(rng, source):
    """Mean height, width and area agree with fresh draws within the sampling error."""
    config = DataConfig()
    sample = train_sizes(source, config)
    sizes = np.tile(source.sizes, (100, 1))
    fresh = train_geometries(sizes, rng.random((len(sizes), DRAWS)), config).size
    for f in (lambda s: s[:, 0], lambda s: s[:, 1], lambda s: s.prod(axis=1)):
        a, b = f(sample), f(fresh)
        assert abs(a.mean() - b.mean()) < 5 * np.sqrt(a.var() / len(a) + b.var() / len(b))
    np.testing.assert_array_equal(sample, train_sizes(source, config))


@pytest.mark.parametrize(("count", "least"), [(8, 0.76), (16, 0.83)])
def test_training_buckets_hold_all_augmentations_and_waste_little(rng, source, count, least):
    config = DataConfig(num_train_buckets=count)
    buckets = train_buckets(source, config, 32)
    assert len(buckets) == count
    sizes = np.tile(source.sizes, (50, 1))
    fresh = train_geometries(sizes, rng.random((len(sizes), DRAWS)), config).size
    assert useful_share(fresh, buckets) > least  # raises an error if an image does not fit


def test_validation_buckets_waste_little(source):
    config = DataConfig(num_val_buckets=8)
    sizes = val_sizes(source, config)
    buckets = val_buckets(source, config, 32)
    assert len(buckets) <= 8
    assert useful_share(sizes, buckets) > 0.94


def test_configured_buckets_are_used_unchanged(source):
    config = DataConfig(train_buckets=((1344, 1344), (64, 64)), val_buckets=((32, 32),))
    assert train_buckets(source, config, 32) == [(64, 64), (1344, 1344)]
    assert val_buckets(source, config, 32) == [(32, 32)]
