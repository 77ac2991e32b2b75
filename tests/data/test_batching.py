"""Plans, buckets and the content of batches. A stream can be resumed at any step."""

import collections
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from detr_jax.config import DataConfig, ShapesConfig
from detr_jax.data.batching import (
    NO_IMAGE,
    BatchLoader,
    LoaderError,
    batches,
    num_threads,
)
from detr_jax.data.coco import CocoDataset
from detr_jax.data.plans import PlannedBatch, TrainPlan, ValPlan
from detr_jax.data.shapes import ShapesDataset
from detr_jax.data.source import DataError
from detr_jax.data.transforms import DRAWS, train_geometries
from tests.data.transformed import apply

BATCH = 4
BUCKETS = ((48, 64), (64, 48), (64, 64), (96, 96))


@pytest.fixture
def source(rng):
    config = ShapesConfig(train_images=57, min_size=32, max_size=64, seed=int(rng.integers(2**31)))
    return ShapesDataset(config, "train")


@pytest.fixture
def config():
    """A configuration whose only augmentation is a flip, so images keep their size."""
    return DataConfig(train_short_sides=(), crop_short_sides=(), train_buckets=BUCKETS, val_buckets=BUCKETS)


@pytest.fixture
def cropping():
    """A configuration with the full augmentation at small sizes."""
    return DataConfig(
        train_short_sides=(32, 40, 48),
        crop_short_sides=(30, 36),
        crop_min=24,
        crop_max=40,
        max_long_side=96,
        train_buckets=BUCKETS,
        val_buckets=BUCKETS,
    )


def indices(epoch):
    return [image.source_index for batch in epoch for image in batch.images]


def assert_same_batch(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def take(stream, count):
    return list(itertools.islice(stream, count))


@pytest.mark.parametrize("augmentation", ["config", "cropping"])
def test_an_epoch_has_its_number_of_full_batches_of_different_images(source, augmentation, request):
    plan = TrainPlan(source, request.getfixturevalue(augmentation), BATCH, seed=3)
    assert plan.steps_per_epoch == 57 // BATCH
    for number in range(3):
        epoch = plan.epoch(number)
        assert len(epoch) == 57 // BATCH
        for bucket, images, _ in epoch:
            assert len(images) == BATCH
            assert bucket in BUCKETS
            for image in images:
                assert image.geometry.size[0] <= bucket[0]
                assert image.geometry.size[1] <= bucket[1]
        assert len(set(indices(epoch))) == 56, "one bucket holds all, so nothing is used twice"


def _indices_and_geometries(images):
    return [(image.source_index, image.geometry) for image in images]


def test_each_geometry_of_a_plan_belongs_to_the_size_of_its_image(source, cropping):
    """`train_geometry` can give each geometry for the image's size. The draws differ, so the geometries vary."""
    plan = TrainPlan(source, cropping, BATCH, seed=1)
    images = [image for batch in plan.epoch(0) for image in batch.images]
    assert {image.geometry.flip for image in images} == {False, True}
    assert {image.geometry.crop is None for image in images} == {False, True}
    for index, geometry in _indices_and_geometries(images):
        if geometry.crop is None:
            draws = np.zeros((6, DRAWS))
            draws[:, [0, 2]] = list(itertools.product((0.0, 0.9), (0.0, 0.5, 0.9)))
            assert geometry in set(train_geometries(source.sizes[[index] * 6], draws, cropping))


def test_buckets_are_chosen_from_the_data_if_none_are_given(source, cropping):
    """The buckets depend only on data and configuration, so a resumed run has the same buckets."""
    cropping.train_buckets = cropping.val_buckets = ()
    cropping.num_train_buckets, cropping.num_val_buckets = 5, 3
    plan, same = TrainPlan(source, cropping, BATCH, 0, stride=8), TrainPlan(source, cropping, 8, 1, stride=8)
    assert plan.buckets == same.buckets
    assert 1 < len(plan.buckets) <= 5
    assert {batch.bucket for epoch in range(5) for batch in plan.epoch(epoch)} <= set(plan.buckets)
    val = ValPlan(source, cropping, BATCH, stride=8)
    assert 1 <= len(val.buckets) <= 3
    assert all(side % 8 == 0 for bucket in (*plan.buckets, *val.buckets) for side in bucket)


def test_epochs_differ_and_depend_only_on_the_seed(source, cropping):
    plan, same, other = (TrainPlan(source, cropping, BATCH, seed) for seed in (3, 3, 4))
    assert list(plan.epoch(0)) == list(same.epoch(0))
    assert list(plan.epoch(1)) != list(plan.epoch(0))
    assert list(other.epoch(0)) != list(plan.epoch(0))
    assert indices(plan.epoch(0)) != indices(plan.epoch(1))
    assert list(same.epoch(7)) == list(plan.epoch(7))


def test_every_image_is_used_about_equally_often_over_the_epochs(source, config):
    plan = TrainPlan(source, config, BATCH, seed=0)
    uses = collections.Counter(index for epoch in range(20) for index in indices(plan.epoch(epoch)))
    assert set(uses) == set(range(57))
    assert min(uses.values()) > 10


def test_steps_continue_through_the_epochs(source, config):
    plan = TrainPlan(source, config, BATCH, seed=0)
    steps = plan.steps_per_epoch
    assert [plan[step] for step in range(steps, 2 * steps)] == list(plan.epoch(1))
    assert plan.epoch(1)[2:5] == [plan[steps + 2], plan[steps + 3], plan[steps + 4]]


def test_a_plan_is_the_same_in_another_process_and_its_pickle_is_small(source, cropping):
    """Worker processes get the plan without its cache of planned epochs."""
    plan = TrainPlan(source, cropping, BATCH, seed=5)
    before = len(pickle.dumps(plan))
    plan.epoch(0), plan.epoch(3)
    content = pickle.dumps(plan)
    assert len(content) == before
    assert list(pickle.loads(content).epoch(3)) == list(plan.epoch(3))


def test_spares_are_the_images_of_the_next_batch_whose_bucket_fits(source, cropping):
    epoch = list(TrainPlan(source, cropping, BATCH, seed=7).epoch(0))
    for number, (bucket, _, spares) in enumerate(epoch):
        others = [epoch[(number + distance) % len(epoch)] for distance in range(1, len(epoch))]
        fitting = (other.images for other in others if np.less_equal(other.bucket, bucket).all())
        assert list(spares) == next(fitting, [])


def test_a_data_set_smaller_than_a_batch_fills_it_with_repetitions(config):
    tiny = ShapesDataset(ShapesConfig(train_images=2, min_size=32, max_size=48), "train")
    plan = TrainPlan(tiny, config, BATCH, seed=0)
    (batch,) = plan.epoch(0)
    assert len(batch.images) == BATCH
    assert set(indices([batch])) == {0, 1}


def test_the_error_names_the_image_that_no_bucket_holds_and_the_field(source, config):
    height, width = source.sizes[13] = (130, 50)
    config.val_short_side = 0
    with pytest.raises(DataError, match=rf"Image 13 .*{height} x {width}.*data.train_buckets"):
        TrainPlan(source, config, BATCH, seed=0)
    with pytest.raises(DataError, match=rf"Image 13 .*{height} x {width}.*data.val_buckets"):
        ValPlan(source, config, BATCH)


def test_crops_that_fit_no_bucket_are_an_error_before_training(source, cropping):
    cropping.train_buckets = ((48, 96),)
    with pytest.raises(DataError, match=r"data\.train_buckets"):
        TrainPlan(source, cropping, BATCH, 0)


def test_validation_uses_each_image_once(source, config):
    config.val_short_side = 0
    plan = ValPlan(source, config, BATCH)
    assert sorted(indices(plan)) == list(range(57))
    for bucket, images, _ in plan:
        assert 1 <= len(images) <= BATCH
        assert all(np.less_equal(image.geometry.size, bucket).all() for image in images)
        assert not any(image.geometry.flip or image.geometry.crop for image in images)
    assert len(plan) == -(-57 // BATCH), "the bucket of 96 holds all, so one batch at most is not full"


def test_a_batch_holds_its_images_boxes_and_sizes_and_zeros_beyond(source, cropping):
    plan = TrainPlan(source, cropping, BATCH, seed=2)
    planned = max(plan.epoch(0), key=lambda one: sum(len(source[i.source_index].objects.labels) for i in one.images))
    batch = BatchLoader(source, BATCH)(planned)
    assert batch.inputs.images.shape == (BATCH, *planned.bucket, 3)
    assert batch.inputs.targets.boxes.shape == (BATCH, 4, 4)
    assert [array.dtype for array in jax.tree.leaves(batch)] == ["u1", "i4", "f4", "i4", "i4", "i8", "i4", "i8"]
    for i, (index, geometry) in enumerate(_indices_and_geometries(planned.images)):
        sample = source[index]
        image, objects = apply(geometry, sample.image, sample.objects)
        boxes, labels = objects.boxes, objects.labels
        height, width = image.shape[:2]
        np.testing.assert_array_equal(batch.inputs.images[i, :height, :width], image)
        assert not batch.inputs.images[i, height:].any()
        assert not batch.inputs.images[i, :, width:].any()
        assert tuple(batch.inputs.valid_sizes[i]) == (height, width)
        assert tuple(batch.info.original_sizes[i]) == tuple(source.sizes[index])
        assert batch.info.image_ids[i] == source.image_ids[index]
        assert batch.inputs.targets.count[i] == len(labels)
        np.testing.assert_array_equal(batch.inputs.targets.labels[i, : len(labels)], labels)
        assert not batch.inputs.targets.boxes[i, len(labels) :].any()
        for (x0, y0, x1, y1), found in zip(boxes.tolist(), batch.inputs.targets.boxes[i], strict=False):
            center = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height]
            np.testing.assert_allclose(found, [*center, (x1 - x0) / width, (y1 - y0) / height], atol=1e-6)


def test_empty_slots_have_no_id_and_no_boxes(source, config):
    config.val_short_side = 0
    plan = ValPlan(source, config, 100)
    bucket, images, _ = plan[0]
    batch = BatchLoader(source, 100)(plan[0])
    used = len(images)
    np.testing.assert_array_equal(
        batch.info.image_ids[:used], [source.image_ids[image.source_index] for image in images]
    )
    assert (batch.info.image_ids[used:] == NO_IMAGE).all()
    assert (batch.inputs.targets.count[used:] == 0).all()
    assert (batch.inputs.valid_sizes[used:] == bucket).all()
    assert (batch.info.original_sizes >= 1).all()
    assert not batch.inputs.images[used:].any()


def test_batches_of_a_source_without_objects_have_room_for_one_object(config):
    empty = ShapesDataset(ShapesConfig(train_images=4, min_size=32, max_size=48, max_objects=0), "train")
    batch = BatchLoader(empty, BATCH)(TrainPlan(empty, config, BATCH, 0)[0])
    assert batch.inputs.targets.boxes.shape == (BATCH, 1, 4)
    assert not batch.inputs.targets.count.any()


@pytest.mark.parametrize("start", [1, 14, 20])
def test_a_stream_that_starts_at_a_later_step_gives_the_same_batches(source, cropping, start):
    plan = TrainPlan(source, cropping, BATCH, seed=6)
    whole = take(batches(plan, source, BATCH, cropping), start + 3)
    resumed = take(batches(plan, source, BATCH, cropping, start=start), 3)
    for one, other in zip(whole[start:], resumed, strict=True):
        assert_same_batch(one, other)


def test_batches_are_the_same_for_any_number_of_threads(source, cropping):
    streams = []
    for cropping.num_threads in (1, 8):
        plan = TrainPlan(source, cropping, BATCH, seed=6)
        streams.append(take(batches(plan, source, BATCH, cropping), 20))
    for step, (one, other) in enumerate(zip(*streams, strict=True)):
        assert_same_batch(one, other)
        assert_same_batch(one, BatchLoader(source, BATCH)(plan[step]))


def test_by_default_there_is_one_thread_per_core_divided_among_the_processes(monkeypatch):
    monkeypatch.setattr("detr_jax.data.batching.usable_cores", lambda: 12)
    assert num_threads(DataConfig()) == 12
    assert num_threads(DataConfig(num_workers=4)) == 3
    assert num_threads(DataConfig(num_workers=30)) == 1
    assert num_threads(DataConfig(num_workers=4, num_threads=2)) == 2


@pytest.mark.parametrize("workers", [2, 4])
def test_worker_processes_give_the_same_batches_also_when_resumed_within_an_epoch(source, cropping, workers):
    """Image ids, boxes and pixels equal a stream of this process from the first step, also if images are skipped."""
    broken = Unreadable(source.config, "train")
    cropping.on_error = "skip"
    plan = TrainPlan(broken, cropping, BATCH, seed=6)
    start = plan.steps_per_epoch - 3  # the stream continues into the next epoch
    expected = take(batches(plan, broken, BATCH, cropping), start + 6)[start:]
    assert any((batch.info.skipped != NO_IMAGE).any() for batch in expected)
    cropping.num_workers = workers
    for one, other in zip(expected, take(batches(plan, broken, BATCH, cropping, start=start), 6), strict=True):
        assert_same_batch(one, other)


def test_a_killed_worker_process_ends_the_stream_with_an_error_message(source, cropping):
    cropping.num_workers = 1
    stream = batches(TrainPlan(source, cropping, BATCH, seed=6), source, BATCH, cropping)
    next(stream)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(LoaderError, match=r"ended unexpectedly.*-9.*data\.num_workers=1"):
        list(itertools.islice(stream, 1000))


def test_worker_processes_exit_when_the_stream_is_closed(source, cropping):
    """They are not killed, because killed processes do not free their shared memory."""
    cropping.num_workers = 1
    stream = batches(TrainPlan(source, cropping, BATCH, seed=6), source, BATCH, cropping)
    next(stream)
    (worker,) = multiprocessing.active_children()
    stream.close()
    assert worker.exitcode == 0


ORPHANING = """
import multiprocessing, os, signal
from detr_jax.data import TrainPlan, open_source
from detr_jax.data.batching import batches
from detr_jax.testing import tiny_config

if __name__ == "__main__":
    config = tiny_config()
    config.data.num_workers = 1
    source = open_source(config, "train")
    stream = batches(TrainPlan(source, config.data, 8, seed=0), source, 8, config.data)
    next(stream)
    (worker,) = multiprocessing.active_children()
    print(worker.pid, flush=True)  # the worker is alive
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_worker_processes_exit_when_their_parent_is_killed(tmp_path):
    (tmp_path / "orphaning.py").write_text(ORPHANING)
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, tmp_path / "orphaning.py"]
    # returns when no process holds the output any more, the worker included
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60)
    assert run.returncode == -signal.SIGKILL
    assert int(run.stdout) > 0


class Unreadable(ShapesDataset):
    """Every third image cannot be read."""

    def __getitem__(self, index):
        if index % 3 == 0:
            raise DataError(f"The image file {index}.png is broken.")
        return super().__getitem__(index)


def test_an_unreadable_image_stops_training_and_validation_with_an_error_that_names_it(source, config):
    broken = Unreadable(source.config, "train")
    config.val_short_side = 0
    with pytest.raises(DataError, match=r"\d+\.png is broken"):
        take(batches(TrainPlan(broken, config, BATCH, seed=0), broken, BATCH, config), 5)
    config.on_error = "skip"  # validation ignores it
    with pytest.raises(DataError, match=r"\d+\.png is broken"):
        list(batches(ValPlan(broken, config, BATCH), broken, BATCH, config))


def test_skipped_images_are_replaced_by_the_next_image_of_their_batch_and_listed(source, cropping):
    broken = Unreadable(source.config, "train")
    plan = TrainPlan(broken, cropping, BATCH, seed=2)
    intact, skipping = BatchLoader(source, BATCH), BatchLoader(broken, BATCH, skip=True, num_threads=3)
    skipped = 0
    for planned in plan.epoch(0):
        readable = [image.source_index % 3 != 0 for image in planned.images]
        if not any(readable):
            continue
        expected, found = intact(planned), skipping(planned)
        for place, image in enumerate(planned.images):
            taken = next(i % BATCH for i in range(place, place + BATCH) if readable[i % BATCH])
            for one, other in zip(jax.tree.leaves(expected)[:-1], jax.tree.leaves(found)[:-1], strict=True):
                np.testing.assert_array_equal(one[taken], other[place])
            assert found.info.skipped[place] == (NO_IMAGE if readable[place] else broken.image_ids[image.source_index])
            skipped += not readable[place]
        assert (expected.info.skipped == NO_IMAGE).all()
    assert skipped > 10


def test_selected_rows_equal_the_rows_of_the_full_batch_even_if_images_are_skipped(source, cropping, rng):
    broken = Unreadable(source.config, "train")
    plan, whole = TrainPlan(broken, cropping, BATCH, seed=2), BatchLoader(broken, BATCH, skip=True)
    for planned in [plan[step] for step in range(10)] + [PlannedBatch(plan[0].bucket, plan[0].images[:2])]:
        if all(image.source_index % 3 == 0 for image in planned.images):
            continue
        rows = sorted(rng.choice(BATCH, int(rng.integers(1, BATCH)), replace=False).tolist())
        part = BatchLoader(broken, BATCH, skip=True, rows=rows)(planned)
        for one, other in zip(jax.tree.leaves(whole(planned)), jax.tree.leaves(part), strict=True):
            np.testing.assert_array_equal(one[rows], other)


def test_a_batch_without_readable_images_takes_spare_images_that_fit_its_bucket(source, config):
    broken = Unreadable(source.config, "train")
    plan = TrainPlan(broken, config, 1, seed=2)
    loader = BatchLoader(broken, 1, skip=True)
    replaced = 0
    for planned in plan.epoch(0):
        if planned.images[0].source_index % 3 == 0 and planned.spares[0].source_index % 3 != 0:
            batch = loader(planned)
            assert batch.inputs.images.shape[1:3] == planned.bucket
            assert batch.info.image_ids[0] == planned.spares[0].source_index
            assert batch.info.skipped[0] == planned.images[0].source_index
            replaced += 1
    assert replaced > 3
    nothing = planned._replace(images=[planned.images[0]._replace(source_index=0)], spares=())
    with pytest.raises(DataError, match=r"0\.png is broken"):
        loader(nothing)


@pytest.fixture
def photographs(tmp_path, rng):
    """A COCO folder of smooth JPEGs with sides of 500 to 700 pixels, without objects."""
    images = []
    for number, (height, width) in enumerate(rng.integers(500, 700, (8, 2)).tolist(), start=1):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(tmp_path / f"{number}.jpg", quality=90)
        images.append({"id": number, "file_name": f"{number}.jpg", "height": height, "width": width})
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return CocoDataset(tmp_path, tmp_path / "instances.json")


def test_batches_of_jpegs_equal_a_plain_implementation_with_pillow(photographs):
    """Pillow decodes, flips, resizes, crops and resizes step by step. The results differ only by rounding."""
    config = DataConfig(
        train_short_sides=(96, 128), crop_short_sides=(110, 140), crop_min=60, crop_max=130, max_long_side=170
    )
    plan = TrainPlan(photographs, config, BATCH, seed=4)
    kinds = set()
    for scaled, most, mean in ((False, 3, 0.2), (True, 60, 1.0)):
        loader = BatchLoader(photographs, BATCH, scaled_decoding=scaled)
        for step in range(8):
            batch = loader(plan[step])
            for place, (index, geometry) in enumerate(_indices_and_geometries(plan[step].images)):
                picture = Image.open(photographs.image_folder / f"{photographs.image_ids[index]}.jpg").convert("RGB")
                if geometry.flip:
                    picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                if geometry.crop:
                    top, left, height, width = geometry.crop
                    picture = picture.resize(geometry.crop_from[::-1], Image.Resampling.BILINEAR)
                    picture = picture.crop((left, top, left + width, top + height))
                picture = picture.resize(geometry.size[::-1], Image.Resampling.BILINEAR)
                height, width = geometry.size
                off = np.abs(batch.inputs.images[place, :height, :width].astype(int) - np.asarray(picture))
                assert off.max() <= most
                assert off.mean() < mean
                if not scaled and not geometry.crop:
                    assert off.max() == 0
                kinds.add((geometry.flip, geometry.crop is None))
    assert len(kinds) == 4


def test_a_validation_stream_ends_after_its_plan(source, config):
    config.val_short_side = 0
    plan = ValPlan(source, config, BATCH)
    stream = list(batches(plan, source, BATCH, config))
    ids = np.concatenate([batch.info.image_ids for batch in stream])
    assert len(stream) == len(plan)
    assert sorted(ids[ids != NO_IMAGE]) == list(source.image_ids)


def test_images_of_a_rare_shape_are_used_as_often_as_others(source, config):
    """There are two buckets, neither of which fits in the other, and one has far fewer images than a batch."""
    source.sizes = np.array([[40, 60]] * 50 + [[60, 40]] * 7)
    config.train_short_sides = config.crop_short_sides = ()
    config.train_buckets = ((64, 96), (96, 64))
    plan = TrainPlan(source, config, batch_size=20, seed=0)
    epochs = 400
    uses = collections.Counter(index for epoch in range(epochs) for index in indices(plan.epoch(epoch)))
    expected = plan.steps_per_epoch * 20 / len(source)
    rare = np.mean([uses[index] for index in range(50, 57)]) / epochs
    assert 0.5 * expected < rare < 2 * expected
