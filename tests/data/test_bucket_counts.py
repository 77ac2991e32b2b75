"""The number of buckets against its definition, and for typical runs."""

import numpy as np
import pytest

from configs import coco, finetune
from detr_jax.config import Config, DataConfig, EvaluationConfig, ShapesConfig, TrainingConfig
from detr_jax.data.bucket_counts import (
    COMPILATION_PIXELS,
    count_that_pays,
    images_trained,
    images_validated,
    settle_train_buckets,
    settle_val_buckets,
)
from detr_jax.data.buckets import bucket_for, choose_buckets, train_buckets, val_sizes
from detr_jax.data.shapes import ShapesDataset


def source_of(sizes):
    source = ShapesDataset(ShapesConfig(train_images=len(sizes)), "train")
    source.sizes = np.asarray(sizes)
    return source


def photographs(rng, number):
    """Photographs with a long side of 640 pixels, three quarters of them landscapes."""
    short = rng.choice([360, 427, 480, 480, 640], number)
    landscape = rng.random(number) < 0.75
    return source_of(np.stack([np.where(landscape, short, 640), np.where(landscape, 640, short)], axis=1))


def counts(config, train, val):
    config = settle_val_buckets(settle_train_buckets(config, train), val, len(train))
    return config.data.num_train_buckets, config.data.num_val_buckets


def test_the_number_minimises_padding_and_compilation_together(rng):
    for _ in range(50):
        padded = np.sort(rng.integers(1e5, 2e6, rng.integers(1, 13)))[::-1].astype(float)
        images = int(10 ** rng.uniform(0, 6))
        costs = [images * pixels + number * COMPILATION_PIXELS for number, pixels in enumerate(padded, start=1)]
        assert count_that_pays(padded, images) == costs.index(min(costs)) + 1
    assert count_that_pays(np.array([5e5, 5e5, 5e5]), 10**9) == 1, "no bucket is compiled that saves nothing"


def test_the_images_of_a_run_are_counted_over_its_steps_and_validations():
    config = Config(training=TrainingConfig(batch_size=8, epochs=50))
    assert images_trained(config, 205) == 50 * 25 * 8
    assert images_validated(config, 87, 205) == 50 * 87
    config.evaluation = EvaluationConfig(every_epochs=20)
    assert images_validated(config, 87, 205) == 3 * 87  # after 20 and 40 epochs, and at the end
    config.evaluation = EvaluationConfig(every_epochs=0)
    assert images_validated(config, 87, 205) == 87
    config = Config(training=TrainingConfig(batch_size=8, steps=60))
    assert images_trained(config, 205) == 480
    assert images_validated(config, 87, 205) == 3 * 87
    assert images_validated(config, 87, 3) == 60 * 87, "an epoch has at least one step"


def test_few_images_of_one_size_get_few_buckets():
    """BCCD is such a data set: 205 training and 87 validation images, fine-tuned over tens of epochs."""
    config = finetune.get_config()
    train, val = source_of([(480, 640)] * 205), source_of([(480, 640)] * 87)
    for config.training.epochs in (10, 30, 50):
        number, val_number = counts(config, train, val)
        assert 1 <= number <= 3
        assert val_number == 1
        assert len(train_buckets(train, settle_train_buckets(config, train).data, 32)) == number


def test_more_images_and_longer_runs_get_more_buckets_up_to_the_limit(rng):
    train, val = photographs(rng, 2000), photographs(rng, 500)
    config = coco.get_config()
    numbers = []
    for config.training.epochs in (1, 10, 100, 1000, 100_000):
        numbers.append(counts(config, train, val))
    assert numbers == sorted(numbers)
    assert numbers[0][0] <= 4
    assert numbers[-1][0] == 12
    assert numbers[-1][1] == min(6, len(choose_buckets(val_sizes(val, config.data), 6)))
    config.data.num_train_buckets = 5
    assert counts(config, train, val)[0] == 5


def test_a_long_run_on_many_images_gets_all_buckets(rng):
    """COCO is such a run: 118,287 images over 300 epochs, with enough sizes for six validation buckets."""
    sizes = rng.integers(240, 641, (118_287, 2))
    assert counts(coco.get_config(), source_of(sizes), source_of(sizes[:5000])) == (12, 6)


def test_configured_buckets_are_not_changed():
    config = Config(data=DataConfig(train_buckets=((64, 64),), val_buckets=((64, 64),)))
    source = source_of([(480, 640)] * 3)
    assert settle_train_buckets(config, source) == config
    assert settle_val_buckets(config, source, 3) == config


@pytest.mark.parametrize("steps", [1, 10**6])
def test_a_rare_large_image_fits_with_any_number_of_buckets(rng, steps):
    sizes = rng.integers(40, 80, (500, 2))
    sizes[int(rng.integers(500))] = (70, 900)
    data = DataConfig(train_short_sides=(), crop_short_sides=(), val_short_side=0)
    config = Config(data=data, training=TrainingConfig(steps=steps))
    train = source_of(sizes)
    buckets = train_buckets(train, settle_train_buckets(config, train).data, 32)
    assert all(bucket_for(tuple(size), buckets) for size in sizes.tolist())
