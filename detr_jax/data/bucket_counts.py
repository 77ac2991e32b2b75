"""Choose the number of buckets of a run: one more is added only if it saves more padding than its compilation costs."""

import dataclasses

import numpy as np

from detr_jax.config import Config
from detr_jax.data.buckets import padded_pixels, train_sizes, val_sizes
from detr_jax.data.plans import steps_per_epoch
from detr_jax.data.source import Source

COMPILATION_PIXELS = 10**9
"""The number of padded pixels that a device trains on in the time of one compilation.

A compilation of DETR R50 takes 40 s. The assumed speed is 25 megapixels per second, or about 30 images of 800 x 1088.
It lies between a small GPU (10) and an H100 in bfloat16 (200, measured). In validation, which runs only the forward
pass, a pixel and a compilation both take about a third of the time, so the ratio is the same. The number is a constant
and is not measured during a run, so that a run has the same buckets on every machine."""


def count_that_pays(padded: np.ndarray, images: float) -> int:
    """The number of buckets with the lowest cost: padded pixels over the run, plus `COMPILATION_PIXELS` per bucket.

    Args:
      padded: [k] float, padded pixels per image with 1 to ``k`` buckets.
      images: how many images the run trains on or validates. An image counts every time it is used.
    """
    counts = np.arange(1, len(padded) + 1)
    return int((images * padded + COMPILATION_PIXELS * counts).argmin()) + 1


def total_steps(config: Config, train_images: int) -> int:
    """The number of optimizer steps of a run on ``train_images`` training images."""
    training = config.training
    return training.steps or (training.epochs or 0) * steps_per_epoch(train_images, training.batch_size)


def images_trained(config: Config, train_images: int) -> int:
    """How many images a run trains on, if the data set has ``train_images``. An image counts every time it is used."""
    return total_steps(config, train_images) * config.training.batch_size


def images_validated(config: Config, val_images: int, train_images: int) -> int:
    """How many images a run validates, if the data sets have these numbers of images.

    An image counts every time it is used.
    """
    every = config.evaluation.every_epochs * steps_per_epoch(train_images, config.training.batch_size)
    validations = -(-total_steps(config, train_images) // every) if every else 1
    return validations * val_images


def settle_train_buckets(config: Config, train: Source) -> Config:
    """Lowers ``data.num_train_buckets``, which is an upper limit, to the number of buckets that pays.

    The number depends on the sizes of the images, the augmentation and the length of the run. The configuration stays
    the same if it gives ``data.train_buckets``.
    """
    data = config.data
    if data.train_buckets:
        return config
    padded = padded_pixels(
        train_sizes(train, data),
        data.num_train_buckets,
        config.model.stride,
        data.augmentation.bounds(train.sizes, data),
    )
    count = count_that_pays(padded, images_trained(config, len(train)))
    return dataclasses.replace(config, data=dataclasses.replace(data, num_train_buckets=count))


def settle_val_buckets(config: Config, val: Source, train_images: int) -> Config:
    """Lowers ``data.num_val_buckets`` in the same way as `settle_train_buckets`.

    The number of validations follows from ``train_images``.
    """
    data = config.data
    if data.val_buckets:
        return config
    padded = padded_pixels(val_sizes(val, data), data.num_val_buckets, config.model.stride)
    count = count_that_pays(padded, images_validated(config, len(val), train_images))
    return dataclasses.replace(config, data=dataclasses.replace(data, num_val_buckets=count))
