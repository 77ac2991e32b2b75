"""The augmentation of a configuration: default geometry, random numbers of the pixels, changes of colours."""

import dataclasses
import itertools

import numpy as np
import pytest
from PIL import Image

from detr_jax.config import (
    Augmentation,
    ColorJitter,
    ConfigError,
    DataConfig,
    DetrAugmentation,
    Photometric,
    ShapesConfig,
)
from detr_jax.data import TrainPlan, ValPlan, batches
from detr_jax.data.grouping import group
from detr_jax.data.photometric import jitter
from detr_jax.data.shapes import ShapesDataset
from detr_jax.data.transforms import Geometries, largest_sizes, train_geometries

BATCH = 4


@dataclasses.dataclass(kw_only=True)
class Shift(Photometric):
    """Adds a level from 0 to 255 to each pixel, modulo 256, so that the random number can be read from the pixels."""

    num_draws: int = 1

    def __call__(self, image, draws):
        return image + np.uint8(draws[0] * 256)


@dataclasses.dataclass(kw_only=True)
class Halved(Augmentation):
    """Shrinks each image to half, or to a third if its only random number is below a half."""

    @property
    def draws(self):
        return 1

    def geometries(self, sizes, draws, data):
        n = len(sizes)
        size = np.where(draws < 0.5, sizes // 3, sizes // 2).astype(np.int32)
        return Geometries(np.zeros(n, bool), np.zeros((n, 2), np.int32), np.zeros((n, 4), np.int32), size)

    def bounds(self, sizes, data):
        return sizes[:, None] // 2


@pytest.fixture
def source(rng):
    return ShapesDataset(
        ShapesConfig(train_images=23, seed=int(rng.integers(2**31)), min_size=32, max_size=64), "train"
    )


@pytest.fixture
def data():
    """The paper's augmentation at small sizes."""
    return DataConfig(
        train_short_sides=(32, 40, 48),
        crop_short_sides=(30, 36),
        crop_min=24,
        crop_max=40,
        max_long_side=96,
        train_buckets=((64, 96), (96, 64), (96, 96)),
        num_threads=1,
    )


def with_pixels(data, photometric):
    return dataclasses.replace(data, augmentation=DetrAugmentation(photometric=photometric))


def read(plan, source, data, number, start=0):
    return list(itertools.islice(batches(plan, source, BATCH, data, start=start), number))


def assert_same_images(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.inputs.images, b.inputs.images)


def photometric_config(data, rng):
    """A jitter of all four kinds, with random ranges."""
    brightness, contrast, saturation = rng.uniform(0.2, 0.8, 3).tolist()
    change = ColorJitter(
        brightness=brightness, contrast=contrast, saturation=saturation, hue=float(rng.uniform(0.1, 0.5))
    )
    return with_pixels(data, change)


@pytest.mark.parametrize("photometric", [None, ColorJitter(brightness=0.4, hue=0.1)])
def test_geometries_and_order_come_from_the_random_numbers_of_earlier_versions(source, data, photometric, rng):
    """A run of an earlier version can be resumed, and a photometric change leaves geometries and order as they are."""
    seed, epoch = int(rng.integers(2**31)), int(rng.integers(5))
    plan = TrainPlan(source, with_pixels(data, photometric), BATCH, seed)
    draws = np.random.default_rng((seed, epoch, 0)).random((len(source), 8))
    expected = train_geometries(source.sizes, draws, data)
    _, images = group(expected.size, plan.buckets, BATCH, np.random.default_rng((seed, epoch, 1)))
    found = [[image.source_index for image in batch.images] for batch in plan.epoch(epoch)]
    assert found == images.tolist()
    for batch in plan.epoch(epoch):
        for image in batch.images:
            assert image.geometry == expected[image.source_index]


def test_the_default_augmentation_changes_no_pixel_and_bounds_the_papers_sizes(source, data, rng):
    image = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    default = DataConfig().augmentation
    assert default.pixel_draws == 0
    np.testing.assert_array_equal(default.pixels(image, ()), image)
    np.testing.assert_array_equal(default.bounds(source.sizes, data), largest_sizes(source.sizes, data))


def test_pixels_are_changed_by_random_numbers_that_differ_between_images_and_epochs(source, data, rng):
    data, seed = with_pixels(data, Shift()), int(rng.integers(2**31))
    plan = TrainPlan(source, data, BATCH, seed)
    steps = 2 * plan.steps_per_epoch
    plain = read(plan, source, with_pixels(data, None), steps)
    changed = read(plan, source, data, steps)
    shifts = []
    for step, (before, after) in enumerate(zip(plain, changed, strict=True)):
        np.testing.assert_array_equal(after.inputs.targets.boxes, before.inputs.targets.boxes)
        for row, (height, width) in enumerate(before.inputs.valid_sizes.tolist()):
            planned = plan[step].images[row]
            shift = np.uint8(planned.pixel_draws[0] * 256)
            np.testing.assert_array_equal(
                after.inputs.images[row, :height, :width], before.inputs.images[row, :height, :width] + shift
            )
            assert not after.inputs.images[row, height:].any(), "padding stays zero"
            assert not after.inputs.images[row, :, width:].any(), "padding stays zero"
            shifts.append(planned.pixel_draws)
    assert len(set(shifts)) == len(shifts), "a random number per image and epoch"
    geometry = {draw for epoch in range(2) for draw in np.random.default_rng((seed, epoch, 0)).random(184).tolist()}
    assert geometry.isdisjoint(draws[0] for draws in shifts), "colours do not depend on the flip"


def test_a_stream_that_starts_later_has_the_same_pixels(source, data, rng):
    data = photometric_config(data, rng)
    seed, start = int(rng.integers(2**31)), int(rng.integers(1, 9))
    all_of_them = read(TrainPlan(source, data, BATCH, seed), source, data, start + 3)
    resumed = read(TrainPlan(source, data, BATCH, seed), source, data, 3, start=start)
    assert_same_images(all_of_them[start:], resumed)


@pytest.mark.parametrize("fields", [{"num_threads": 3}, {"num_workers": 2, "num_threads": 2}])
def test_the_number_of_threads_and_processes_changes_no_pixel(source, data, fields, rng):
    data, seed = photometric_config(data, rng), int(rng.integers(2**31))
    one = read(TrainPlan(source, data, BATCH, seed), source, data, 4)
    several = dataclasses.replace(data, **fields)
    assert_same_images(one, read(TrainPlan(source, several, BATCH, seed), source, several, 4))


def test_validation_images_are_never_augmented(source, data):
    plain, changed = (
        read(ValPlan(source, config, BATCH), source, config, 2) for config in (data, with_pixels(data, Shift()))
    )
    assert_same_images(plain, changed)


def test_an_augmentation_of_ones_own_decides_geometries_and_buckets(source, data, rng):
    data = dataclasses.replace(data, augmentation=Halved(), train_buckets=())
    plan = TrainPlan(source, data, BATCH, int(rng.integers(2**31)), stride=16)
    assert max(max(bucket) for bucket in plan.buckets) <= 32
    sizes = source.sizes
    for batch in plan.epoch(0):
        for image in batch.images:
            assert image.geometry.size in [tuple((sizes[image.source_index] // k).tolist()) for k in (2, 3)]
    taken = read(plan, source, data, 1)[0]
    assert taken.inputs.images.shape[1:3] == plan[0].bucket


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda image: image[1:], r"uint8 of shape \[\d+, \d+, 3\]"),
        (lambda image: image.astype(np.float32), "float32 of shape"),
        (lambda image: None, "an object of class NoneType"),
        (Image.fromarray, "an object of class Image"),
    ],
)
def test_pixels_of_another_shape_or_type_are_refused_with_the_field_and_class_that_made_them(
    source, data, wrong, found
):
    class Wrong(Shift):
        def __call__(self, image, draws):
            return wrong(image)

    class OwnPixels(DetrAugmentation):
        def pixels(self, image, draws):
            return wrong(image)

    for augmentation, name in (
        (DetrAugmentation(photometric=Wrong()), r"data\.augmentation\.photometric \(Wrong\)"),
        (OwnPixels(photometric=Shift()), r"data\.augmentation \(OwnPixels\)"),
    ):
        data = dataclasses.replace(data, augmentation=augmentation)
        with pytest.raises(ConfigError, match=rf"{name} returned {found}.*uint8 of shape \[\d+, \d+, 3\], as it got"):
            read(TrainPlan(source, data, BATCH, 0), source, data, 1)


def luma(image):
    """ITU-R 601-2 grey levels, in real numbers."""
    return image.astype(np.float64) @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
def test_a_factor_scales_the_distance_from_black_mean_grey_or_own_grey(kind, rng):
    image = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    factor = float(rng.uniform(0, 2))
    centre = {
        "brightness": np.zeros(()),
        "contrast": np.asarray(luma(image).mean()),
        "saturation": luma(image)[..., None],
    }[kind]
    expected = np.clip(centre + factor * (image - centre), 0, 255)
    factors = [factor if name == kind else 1.0 for name in ("brightness", "contrast", "saturation")]
    found = jitter(image, factors, 0.0)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, expected, atol=2)  # the grey level is rounded, and so is the result


def test_the_hue_is_shifted_around_the_circle():
    red = np.full((2, 3, 3), (255, 0, 0), np.uint8)
    np.testing.assert_allclose(jitter(red, [1, 1, 1], 1 / 3), np.full((2, 3, 3), (0, 255, 0)), atol=6)
    np.testing.assert_allclose(jitter(red, [1, 1, 1], -1 / 3), np.full((2, 3, 3), (0, 0, 255)), atol=6)


def test_a_shift_of_the_hue_keeps_grey_levels_and_is_the_one_of_hsv(rng):
    shift = float(rng.uniform(-0.5, 0.5))
    grey = np.repeat(rng.integers(0, 256, (4, 5, 1), dtype=np.uint8), 3, axis=2)
    np.testing.assert_array_equal(jitter(grey, [1, 1, 1], shift), grey)
    image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    before, after = (
        np.asarray(Image.fromarray(one).convert("HSV")).astype(int) for one in (image, jitter(image, [1, 1, 1], shift))
    )
    np.testing.assert_allclose(after[..., 2], before[..., 2], atol=1)  # the value stays
    vivid = (before[..., 1] > 128) & (before[..., 2] > 128)  # elsewhere few levels make a hue
    turned = (after[..., 0] - before[..., 0] - round(shift * 256) + 128) % 256 - 128
    assert np.abs(turned[vivid]).max(initial=0) <= 4


def test_factors_and_shift_are_drawn_evenly_from_their_ranges(monkeypatch, rng):
    found = []
    monkeypatch.setattr("detr_jax.data.photometric.jitter", lambda image, factors, hue: found.append((*factors, hue)))
    change = ColorJitter(brightness=0.4, contrast=1.5, saturation=0.2, hue=0.1)
    for draws in ([0.0] * 4, [0.5] * 4, [1.0] * 4):
        change(np.zeros((1, 1, 3), np.uint8), draws)
    expected = [(0.6, 0, 0.8, -0.1), (1, 1.25, 1, 0), (1.4, 2.5, 1.2, 0.1)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_jitter_of_zero_changes_nothing(rng):
    image = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(ColorJitter()(image, rng.random(4).tolist()), image)
