"""Geometries against the paper's rules. Boxes stay on their pixels."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from detr_jax.config import DataConfig
from detr_jax.data.source import Objects
from detr_jax.data.transforms import (
    DRAWS,
    Crop,
    Geometry,
    largest_sizes,
    resized,
    train_geometries,
    val_geometries,
    val_geometry,
)
from detr_jax.models import normalize_images
from tests.data.transformed import apply

BELOW_ONE = np.nextafter(1.0, 0.0)


@pytest.fixture
def small():
    """The paper's augmentation at a fifth of its sizes."""
    return DataConfig(
        train_short_sides=(96, 112, 128, 144, 160),
        crop_short_sides=(80, 100, 120),
        crop_min=77,
        crop_max=120,
        max_long_side=267,
    )


def train_geometry(size, draws, config):
    """The geometry of one image."""
    return train_geometries(np.array([size]), draws[None], config)[0]


def resized_by_definition(size, short_side, limit=None):
    """The specification in exact arithmetic: the limited short side is rounded, the long side is truncated."""
    short, long = sorted(size)
    if limit is not None and Fraction(long, short) * short_side > limit:
        short_side = round(Fraction(limit * short, long))
    long_side = int(Fraction(short_side * long, short))
    short_side, long_side = max(short_side, 1), max(long_side, 1)  # images of one pixel keep one
    return (short_side, long_side) if size[0] < size[1] else (long_side, short_side)


@pytest.mark.parametrize(
    ("size", "short_side", "expected"),
    [
        ((200, 640), 800, (417, 1334)),
        ((640, 200), 800, (1334, 417)),
        ((480, 640), 800, (800, 1066)),
        ((480, 640), 480, (480, 640)),
        ((500, 500), 800, (800, 800)),
        ((800, 1333), 800, (800, 1333)),
    ],
)
def test_resizing_gives_the_examples_of_the_specification(size, short_side, expected):
    assert tuple(resized(np.array(size), short_side, 1333)) == expected


@pytest.mark.parametrize("limit", [1333, None])
def test_resizing_follows_its_definition_for_random_sizes(rng, limit):
    cases = rng.integers(32, 1500, (500, 3))
    found = resized(cases[:, :2], cases[:, 2], limit)
    for (height, width, short_side), size in zip(cases.tolist(), found.tolist(), strict=True):
        assert tuple(size) == resized_by_definition((height, width), short_side, limit), (height, width, short_side)


def test_the_long_side_exceeds_its_limit_only_by_rounding(rng):
    """Extreme aspects reach up to 1344 pixels (specification, section 10)."""
    sizes = rng.integers(30, 2000, (2000, 2))
    longest = resized(sizes[sizes.max(axis=1) < 25 * sizes.min(axis=1)], 800, 1333).max()
    assert 1333 < longest <= 1344 + 16


@pytest.mark.parametrize("seed", range(3))
def test_other_roundings_are_within_their_definition_of_the_exact_sides(rng, seed):
    for _ in range(200):
        size = tuple(map(int, rng.integers(1, 2000, 2)))
        short_side, limit = sorted(map(int, rng.integers(20, 1500, 2)))
        scale = min(Fraction(short_side, min(size)), Fraction(limit, max(size)))
        exact = [side * scale for side in size]
        for side, found in zip(exact, resized(np.array(size), short_side, limit, "nearest").tolist(), strict=True):
            assert found == 1 or abs(found - side) <= Fraction(1, 2) + Fraction(1, 10**9)
        for side, found in zip(exact, resized(np.array(size), short_side, limit, "down").tolist(), strict=True):
            assert found == 1 or -1 < found - side <= Fraction(1, 10**9) or abs(found + 1 - side) < Fraction(1, 10**9)
        short, long = sorted(resized(np.array(size), short_side, limit, "transformers").tolist())
        assert short == 1 or abs(short - min(exact)) <= Fraction(1, 2)
        assert long <= limit or short == min(size), "what has the right short side stays as it is"


def test_validation_images_are_only_resized():
    assert val_geometry((200, 640), DataConfig()) == Geometry(False, None, None, (417, 1334))
    assert val_geometry((200, 640), DataConfig(val_short_side=0)) == Geometry(False, None, None, (200, 640))


def test_without_augmentation_an_image_stays_as_it_is(rng):
    config = DataConfig(flip=False, train_short_sides=(), crop_short_sides=())
    assert train_geometry((50, 60), rng.random(DRAWS), config) == Geometry(False, None, None, (50, 60))


def test_flips_branches_and_sides_are_drawn_evenly(rng):
    config, tries = DataConfig(), 6000
    geometries = list(train_geometries(np.full((tries, 2), 1000), rng.random((tries, DRAWS)), config))
    crops = [geometry for geometry in geometries if geometry.crop is not None]
    uncropped_sides = [geometry.size[0] for geometry in geometries if geometry.crop is None]

    def assert_even(values, expected, total):
        counts = {value: values.count(value) for value in set(values)}
        assert set(counts) == set(expected)
        share = 1 / len(expected)
        tolerance = 6 * np.sqrt(total * share * (1 - share))  # six standard deviations
        assert all(abs(count - total * share) < tolerance for count in counts.values()), counts

    assert_even([geometry.flip for geometry in geometries], [False, True], tries)
    assert_even([geometry.crop is None for geometry in geometries], [False, True], tries)
    assert_even(uncropped_sides, config.train_short_sides, len(uncropped_sides))
    assert_even([min(geometry.crop_from) for geometry in crops], config.crop_short_sides, len(crops))
    assert {geometry.flip for geometry in crops} == {False, True}


def test_crop_sides_are_drawn_evenly_with_both_ends_included(rng):
    config = DataConfig(crop_short_sides=(400,), crop_min=398, crop_max=401)
    draws = rng.random((3000, DRAWS))
    draws[:, 1] = 0.9  # the branch that crops
    geometries = list(train_geometries(np.tile([400, 800], (3000, 1)), draws, config))
    heights = np.bincount([geometry.crop.height for geometry in geometries])[398:]
    widths = np.bincount([geometry.crop.width for geometry in geometries])[398:]
    assert len(heights) == 3  # up to the image's own height of 400
    assert len(widths) == 4
    assert abs(heights - 1000).max() < 6 * np.sqrt(1000 * 2 / 3)
    assert abs(widths - 750).max() < 6 * np.sqrt(750 * 3 / 4)


@pytest.mark.parametrize(("draw", "at_end"), [(0.0, False), (BELOW_ONE, True)])
def test_extreme_draws_reach_the_bounds_of_a_crop(draw, at_end):
    draws = np.full(DRAWS, draw)
    draws[1] = 0.5  # the branch that crops
    geometry = train_geometry((480, 640), draws, DataConfig())
    assert geometry.crop_from == ((600, 800) if at_end else (400, 533))
    height, width = (600, 600) if at_end else (384, 384)
    top, left = (0, 200) if at_end else (0, 0)
    assert geometry.crop == Crop(top, left, height, width)


def geometry_by_definition(size, draws, config):
    """The augmentation of one image in plain Python. Each number has its own draw."""

    def integer(low, high, draw):
        return low + int(draw * (high - low + 1))

    def choose(values, draw):
        return values[integer(0, len(values) - 1, draw)]

    flip, branch, side, crop_side, width, height, top, left = draws.tolist()
    crop_from = crop = None
    if config.crop_short_sides and branch >= 0.5:
        crop_from = resized_by_definition(size, choose(config.crop_short_sides, crop_side))
        height, width = (
            integer(config.crop_min, min(side, config.crop_max), draw)
            for side, draw in zip(crop_from, (height, width), strict=True)
        )
        crop = (integer(0, crop_from[0] - height, top), integer(0, crop_from[1] - width, left), height, width)
        size = (height, width)
    if config.train_short_sides:
        size = resized_by_definition(size, choose(config.train_short_sides, side), config.max_long_side)
    return config.flip and flip < 0.5, crop_from, crop, size


@pytest.mark.parametrize(
    "fields",
    [{}, {"train_short_sides": ()}, {"crop_short_sides": ()}, {"flip": False, "max_long_side": 900}],
    ids=["paper", "crop-only", "no-crop", "no-flip"],
)
def test_geometries_of_many_images_equal_the_definition_image_by_image(rng, fields):
    """Images of common and random sizes, squares and extreme aspects, with draws at both ends of their range."""
    config = DataConfig(**fields)
    sizes = np.concatenate(
        [rng.choice([[480, 640], [427, 640], [640, 480], [500, 500]], 150), rng.integers(1, 3000, (150, 2))]
    )
    draws = rng.random((300, DRAWS))
    draws[rng.random(draws.shape) < 0.02] = 0.0
    draws[rng.random(draws.shape) < 0.02] = BELOW_ONE
    found = train_geometries(sizes, draws, config)
    assert len(found) == 300
    for size, draw, geometry in zip(sizes.tolist(), draws, found, strict=True):
        assert geometry == geometry_by_definition(tuple(size), draw, config)
    for size, geometry in zip(sizes.tolist(), val_geometries(sizes, config), strict=True):
        assert geometry == (False, None, None, resized_by_definition(tuple(size), 800, config.max_long_side))


def plain_augmentation(size, rng):
    """The augmentation of the PyTorch code, step by step: the final size, and the crop in its image."""

    def random_resize(size, sides, limit=None):
        return resized_by_definition(size, int(rng.choice(sides)), limit)

    scales = range(480, 801, 32)
    if rng.random() < 0.5:
        return random_resize(size, scales, 1333), None
    resized = random_resize(size, (400, 500, 600))
    width = int(rng.integers(384, min(resized[1], 600), endpoint=True))
    height = int(rng.integers(384, min(resized[0], 600), endpoint=True))
    top = int(rng.integers(0, resized[0] - height, endpoint=True))
    left = int(rng.integers(0, resized[1] - width, endpoint=True))
    return random_resize((height, width), scales, 1333), (*resized, top, left, height, width)


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (333, 900)])
def test_the_augmentation_has_the_distribution_of_a_plain_implementation(rng, size):
    """Every number passes the test of Kolmogorov and Smirnov."""
    config = DataConfig()
    geometries = list(train_geometries(np.tile(size, (4000, 1)), rng.random((4000, DRAWS)), config))
    ours = [(g.size, None if g.crop is None else (*g.crop_from, *g.crop)) for g in geometries]
    plain = [plain_augmentation(size, rng) for _ in range(4000)]
    for f in (lambda final, _: final[0], lambda final, _: final[1], lambda final, _: final[0] / final[1]):
        assert stats.ks_2samp([f(*one) for one in ours], [f(*one) for one in plain]).pvalue > 1e-6
    crops, plain_crops = (np.array([crop for _, crop in all_ if crop]) for all_ in (ours, plain))
    assert abs(len(crops) - len(plain_crops)) < 5 * np.sqrt(2000)
    for column in range(6):
        assert stats.ks_2samp(crops[:, column], plain_crops[:, column]).pvalue > 1e-6
    assert np.abs(np.corrcoef(crops[:, 2:4].T) - np.corrcoef(plain_crops[:, 2:4].T)).max() < 0.15


def test_a_crop_lies_within_the_resized_image(rng, small):
    for height, width, *_ in rng.integers(40, 400, (200, 2)).tolist():
        for draws in rng.random((5, DRAWS)):
            geometry = train_geometry((height, width), draws, small)
            if geometry.crop is None:
                continue
            top, left, crop_height, crop_width = geometry.crop
            assert geometry.crop_from == resized_by_definition((height, width), min(geometry.crop_from))
            assert small.crop_min <= crop_height <= min(geometry.crop_from[0], small.crop_max)
            assert small.crop_min <= crop_width <= min(geometry.crop_from[1], small.crop_max)
            assert 0 <= top <= geometry.crop_from[0] - crop_height
            assert 0 <= left <= geometry.crop_from[1] - crop_width


@pytest.mark.parametrize(
    "fields",
    [{}, {"max_long_side": 200}, {"train_short_sides": ()}, {"crop_short_sides": ()}],
    ids=["paper", "tight-limit", "no-resizing", "no-crop"],
)
def test_no_geometry_is_larger_than_the_predicted_sizes(rng, small, fields):
    """Buckets of `largest_sizes` hold every augmentation."""
    config = DataConfig(**{**vars(small), **fields})
    sizes = rng.integers(60, 400, (2000, 2))
    sizes[::10] //= rng.integers(1, 30, (200, 2))  # with long and thin images
    sizes = np.maximum(sizes, 1)
    found, largest = train_geometries(sizes, rng.random((2000, DRAWS)), config).size, largest_sizes(sizes, config)
    held = (found[:, None] <= largest).all(axis=-1).any(axis=-1)
    assert held.all(), (sizes[~held], found[~held], largest[~held])


def picture_with_rectangles(rng, height, width):
    """A black image with a bright rectangle in each channel, and their boxes. A label is the number of its channel."""
    image, boxes = np.zeros((height, width, 3), np.uint8), []
    for channel in range(3):
        y0, y1 = np.sort(rng.choice(height // 20, 2, replace=False)) * 20 + rng.integers(0, 20)
        x0, x1 = np.sort(rng.choice(width // 20, 2, replace=False)) * 20 + rng.integers(0, 20)
        image[y0:y1, x0:x1, channel] = 255
        boxes.append([x0, y0, x1, y1])
    return image, Objects(np.array(boxes, np.float32), np.arange(3, dtype=np.int32))


def test_boxes_stay_on_their_pixels_through_every_geometry(rng, small):
    seen = 0
    for height, width in rng.integers(120, 300, (60, 2)).tolist():
        image, objects = picture_with_rectangles(rng, height, width)
        geometry = train_geometry((height, width), rng.random(DRAWS), small)
        transformed, moved = apply(geometry, image, objects)
        boxes, labels = moved.boxes, moved.labels
        assert transformed.shape == (*geometry.size, 3)
        assert transformed.dtype == np.uint8
        assert boxes.dtype == np.float32
        assert (boxes >= 0).all()
        assert (boxes <= np.tile(geometry.size[::-1], 2) + 1e-3).all()
        for box, label in zip(boxes, labels, strict=True):
            if min(box[2] - box[0], box[3] - box[1]) < 4:
                continue  # the remaining sliver of a cropped object may be too thin to see
            y, x = np.nonzero(transformed[..., label] >= 128)
            np.testing.assert_allclose([x.min(), y.min(), x.max() + 1, y.max() + 1], box, atol=1.5)
            seen += 1
        for label in set(range(3)) - set(labels):
            assert (transformed[..., label] >= 128).mean() < 0.03, "an object was dropped that can be seen"
    assert seen > 60


def test_a_flip_mirrors_image_and_boxes(rng):
    image, objects = picture_with_rectangles(rng, 100, 140)
    flipped, mirrored = apply(Geometry(True, None, None, (100, 140)), image, objects)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    x0, y0, x1, y1 = objects.boxes.T
    np.testing.assert_array_equal(mirrored.boxes, np.stack([140 - x1, y0, 140 - x0, y1], axis=1))
    np.testing.assert_array_equal(mirrored.labels, objects.labels)


def test_a_crop_clips_boxes_and_drops_those_outside():
    boxes = np.float32([[10, 10, 30, 30], [60, 10, 90, 40], [0, 0, 20, 90], [0, 0, 25, 20]])
    image = np.arange(100 * 100 * 3, dtype=np.uint8).reshape(100, 100, 3)
    geometry = Geometry(False, (100, 100), Crop(20, 5, 60, 50), (60, 50))
    cropped, objects = apply(geometry, image, Objects(boxes, np.int32([7, 8, 9, 5])))
    np.testing.assert_array_equal(cropped, image[20:80, 5:55])
    np.testing.assert_array_equal(objects.boxes, [[5, 0, 25, 10], [0, 0, 15, 60]])
    np.testing.assert_array_equal(objects.labels, [7, 9])


def test_an_image_without_objects_stays_without_objects(rng, small):
    empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    image = np.zeros((150, 200, 3), np.uint8)
    for draws in rng.random((10, DRAWS)):
        _, objects = apply(train_geometry((150, 200), draws, small), image, empty)
        assert objects.boxes.shape == (0, 4)


def test_a_transform_does_not_change_its_inputs(rng, small):
    image, objects = picture_with_rectangles(rng, 150, 200)
    before = image.copy(), objects.boxes.copy()
    for draws in rng.random((10, DRAWS)):
        apply(train_geometry((150, 200), draws, small), image, objects)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(objects.boxes, before[1])


def triangle_weights(length, new_length):
    """Weights [new_length, length] of antialiased linear resampling: triangles as wide as the averaged pixels."""
    scale = length / new_length
    reach = max(scale, 1.0)
    centers = (np.arange(new_length) + 0.5) * scale
    distance = np.abs(np.arange(length) + 0.5 - centers[:, None]) / reach
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(97, 210), (300, 133), (640, 200)])
def test_validation_pixels_are_antialiased_bilinear_and_normalised(rng, height, width):
    """Numpy averages rows and columns in float64. Pillow rounds to integers after each of the two."""
    rough = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)
    for image in (rough, smooth):
        config = DataConfig(val_short_side=128, max_long_side=213)
        empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
        found, _ = apply(val_geometry((height, width), config), image, empty)
        size = resized_by_definition((height, width), 128, 213)
        assert found.shape == (*size, 3)
        rows, columns = triangle_weights(height, size[0]), triangle_weights(width, size[1])
        expected = np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns, optimize=True)
        assert np.abs(found - expected).max() <= 1 + 1e-6, "a level is 1/255"
        normalised = np.asarray(normalize_images(jnp.asarray(found[None]), jnp.asarray([size])))[0]
        wanted = (expected / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        assert (np.abs(normalised - wanted) * [0.229, 0.224, 0.225]).max() <= 1 / 255 + 1e-5
