"""How many buckets a run chooses: as many as save more padding over the run than their compilation costs."""

import dataclasses

import numpy as np

from detr_jax.config import Config
from detr_jax.data.buckets import padded_pixels, train_sizes, val_sizes
from detr_jax.data.plans import steps_per_epoch
from detr_jax.data.source import Source

COMPILATION_PIXELS = 10**9
"""Padded pixels on which a device trains in the time of one compilation: 40 s for DETR R50, and 25 megapixels (some
30 images of 800 x 1088) per second, which lies between a small GPU (10) and an H100 in bfloat16 (200, as measured). In
validation, which runs the forward pass only, a pixel and a compilation both take about a third of the time, so the
ratio is the same. The number is a constant, and not measured, so that a run has the same buckets on every machine."""


def count_that_pays(padded: np.ndarray, images: float) -> int:
    """The number of buckets of the least cost: padded pixels over the run, plus `COMPILATION_PIXELS` per bucket.

    Args:
      padded: [most] float, padded pixels per image with 1, 2, ... buckets.
      images: that the run trains on, or validates, counted each time.
    """
    counts = np.arange(1, len(padded) + 1)
    return int((images * padded + COMPILATION_PIXELS * counts).argmin()) + 1


def total_steps(config: Config, train_images: int) -> int:
    """Optimiser steps of a run on a data set of this many training images."""
    training = config.training
    return training.steps or (training.epochs or 0) * steps_per_epoch(train_images, training.batch_size)


def images_trained(config: Config, train_images: int) -> int:
    """Images that a run trains on, counted each time, for a data set of this many training images."""
    return total_steps(config, train_images) * config.training.batch_size


def images_validated(config: Config, val_images: int, train_images: int) -> int:
    """Images that a run validates, counted each time, for data sets of these numbers of images."""
    every = config.evaluation.every_epochs * steps_per_epoch(train_images, config.training.batch_size)
    validations = -(-total_steps(config, train_images) // every) if every else 1
    return validations * val_images


def settle_train_buckets(config: Config, train: Source) -> Config:
    """The configuration with ``data.num_train_buckets``, which is the most, lowered to the number that pays.

    It depends on the sizes of the images, the augmentation and the length of the run. It changes nothing if
    ``data.train_buckets`` are given.
    """
    data = config.data
    if data.train_buckets:
        return config
    padded = padded_pixels(
        train_sizes(train, data),
        data.num_train_buckets,
        config.model.backbone.stride,
        data.augmentation.bounds(train.sizes, data),
    )
    count = count_that_pays(padded, images_trained(config, len(train)))
    return dataclasses.replace(config, data=dataclasses.replace(data, num_train_buckets=count))


def settle_val_buckets(config: Config, val: Source, train_images: int) -> Config:
    """`settle_train_buckets` for ``data.num_val_buckets``; the number of validations follows from ``train_images``."""
    data = config.data
    if data.val_buckets:
        return config
    padded = padded_pixels(val_sizes(val, data), data.num_val_buckets, config.model.backbone.stride)
    count = count_that_pays(padded, images_validated(config, len(val), train_images))
    return dataclasses.replace(config, data=dataclasses.replace(data, num_val_buckets=count))
