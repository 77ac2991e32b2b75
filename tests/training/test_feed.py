"""Skipped images are counted, named and bounded; a slow loader is told."""

import jax
import numpy as np
import pytest

from detr_jax.config import DataConfig, ShapesConfig
from detr_jax.data import DataError, ShapesDataset
from detr_jax.sharding import create_mesh
from detr_jax.structures import Batch, BatchInfo, BatchInputs, Targets
from detr_jax.training.feed import Feed, Pace


@pytest.fixture
def mesh():
    return create_mesh(jax.devices()[:1])


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


def test_batches_arrive_in_order_and_skipped_images_are_counted_and_named(mesh):
    source = Unreadable(ShapesConfig(train_images=100), "train")
    stream = [batch([1, 2], [-1, 3]), batch([2, 4], [5, 3]), batch([6, 6], [7, 8])]
    said = []
    feed = Feed(iter(stream), mesh, source, DataConfig(max_skipped=0.05), said.append)
    assert [int(sent.images[0, 0, 0, 0]) for sent in feed] == [1, 2, 6]
    assert (feed.images, feed.skipped) == (6, 5)
    assert said == [f"Skipped image {i}: The image file {i}.png is broken." for i in (3, 5, 7)]


def test_more_skipped_images_than_allowed_end_in_an_error_with_the_share_and_the_files(mesh):
    source = Unreadable(ShapesConfig(train_images=100), "train")
    stream = [batch([1, 2], [-1, 3]), batch([2, 4], [5, -1]), batch([6, 6], [7, 8])]
    feed = Feed(iter(stream), mesh, source, DataConfig(max_skipped=0.03), lambda _: None)
    next(feed)
    words = r"4 of 6 .*max_skipped=0\.03 .*100 images of an epoch.*3\.png is broken.*7\.png"
    with pytest.raises(DataError, match=words):
        next(feed)


def test_an_image_that_can_be_read_when_tried_again_is_told_so(mesh):
    source = ShapesDataset(ShapesConfig(train_images=100), "train")
    said = []
    list(Feed(iter([batch([1, 2], [-1, 3])]), mesh, source, DataConfig(), said.append))
    assert said == ["Skipped image 3: image 3 could be read when it was tried again."]


def pace_of(seconds, waited, alone, **fields):
    pace = Pace(10, DataConfig(**fields))
    sentences = []
    for _ in range(50):
        for _ in range(5):
            pace.add(seconds, waited)
        pace.alone = alone
        sentences.append(pace.sentence())
    return sentences


def test_a_loader_that_limits_training_is_told_with_both_rates_now_and_then():
    sentences = pace_of(seconds=0.5, waited=0.3, alone=0.2)
    told = [sentence for sentence in sentences if sentence]
    assert sentences[:2] == [None, told[0]], "one slow line may be chance"
    assert 2 <= len(told) <= 4
    assert "delivers 20 images/s, and the step could do 50." in told[0]


def test_the_advice_names_the_threads_where_they_are_fewer_than_the_cores(monkeypatch):
    monkeypatch.setattr("detr_jax.training.feed.usable_cores", lambda: 6)
    assert "data.num_threads=0 for a thread on each of the 6 cores" in pace_of(0.5, 0.3, 0.2, num_threads=2)[1]
    assert "All 6 cores" in pace_of(0.5, 0.3, 0.2, num_threads=3, num_workers=2)[1]


@pytest.mark.parametrize(("seconds", "waited", "alone"), [(0.5, 0.01, 0.3), (0.5, 0.3, 0.48), (0.5, 0.4, None)])
def test_no_warning_where_the_step_is_what_takes_the_time(seconds, waited, alone):
    assert not any(pace_of(seconds, waited, alone))
