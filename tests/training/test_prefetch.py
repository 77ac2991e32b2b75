"""Skipped images are counted, named and limited."""

import numpy as np
import pytest

from detr_jax.config import DataConfig, ShapesConfig
from detr_jax.data import DataError, ShapesDataset
from detr_jax.structures import Batch, BatchInfo, BatchInputs, Targets
from detr_jax.training.prefetch import Prefetch


class Unreadable(ShapesDataset):
    """Some images cannot be read."""

    broken = frozenset({3, 5, 7, 8})

    def __getitem__(self, index):
        if index in self.broken:
            raise DataError(f"The image file {index}.png is broken.")
        return super().__getitem__(index)


def batch(ids, skipped):
    size = len(ids)
    targets = Targets(np.zeros((size, 2, 4), np.float32), np.zeros((size, 2), np.int32), np.zeros(size, np.int32))
    valid_sizes = np.full((size, 2), 8, np.int32)
    return Batch(
        BatchInputs(np.full((size, 8, 8, 3), ids[0], np.uint8), valid_sizes, targets),
        BatchInfo(np.array(ids), original_sizes=valid_sizes, skipped=np.array(skipped)),
    )


def test_batches_arrive_in_order_and_skipped_images_are_counted_and_named(one_device):
    source = Unreadable(ShapesConfig(train_images=100), "train")
    stream = [batch([1, 2], [-1, 3]), batch([2, 4], [5, 3]), batch([6, 6], [7, 8])]
    said = []
    prefetch = Prefetch(iter(stream), one_device, source, DataConfig(max_skipped=0.05), said.append)
    assert [int(sent.images[0, 0, 0, 0]) for sent in prefetch] == [1, 2, 6]
    assert (prefetch.images, prefetch.skipped) == (6, 5)
    assert said == [f"Skipped image {i}: The image file {i}.png is broken." for i in (3, 5, 7)]


def test_more_skipped_images_than_allowed_end_in_an_error_with_the_share_and_the_files(one_device):
    source = Unreadable(ShapesConfig(train_images=100), "train")
    stream = [batch([1, 2], [-1, 3]), batch([2, 4], [5, -1]), batch([6, 6], [7, 8])]
    prefetch = Prefetch(iter(stream), one_device, source, DataConfig(max_skipped=0.03), lambda _: None)
    next(prefetch)
    words = r"4 of 6 .*max_skipped=0\.03 .*100 images of an epoch.*3\.png is broken.*7\.png"
    with pytest.raises(DataError, match=words):
        next(prefetch)


def test_an_image_that_can_be_read_at_the_second_try_is_reported_as_readable(one_device):
    source = ShapesDataset(ShapesConfig(train_images=100), "train")
    said = []
    list(Prefetch(iter([batch([1, 2], [-1, 3])]), one_device, source, DataConfig(), said.append))
    assert said == ["Skipped image 3: image 3 could be read when it was tried again."]
