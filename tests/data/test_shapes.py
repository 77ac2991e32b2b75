"""The shapes data set: drawn pixels, boxes and labels, all of which follow from the seed."""

import numpy as np
import pytest

from detr_jax.config import SHAPE_KINDS, Config, DataConfig, ModelConfig, ShapesConfig
from detr_jax.data import DataError, Source, open_source
from detr_jax.data.shapes import ShapesDataset


@pytest.fixture
def config(rng):
    return ShapesConfig(
        train_images=60, val_images=40, min_size=40, max_size=70, max_objects=4, seed=int(rng.integers(2**31))
    )


def test_boxes_are_tight_to_the_drawn_pixels(config):
    dataset = ShapesDataset(config, "train")
    for index in range(len(dataset)):
        image, masks, objects = dataset.draw(index)
        boxes, labels = objects.boxes, objects.labels
        assert masks.shape == (len(boxes), *image.shape[:2])
        assert len(labels) == len(boxes)
        for mask, box in zip(masks, boxes, strict=True):
            y, x = np.nonzero(mask)
            np.testing.assert_array_equal(box, [x.min(), y.min(), x.max() + 1, y.max() + 1])


def test_no_two_objects_share_or_touch_a_pixel(config):
    dataset = ShapesDataset(config, "train")
    for index in range(len(dataset)):
        masks = dataset.draw(index).masks
        assert masks.sum(axis=0).max(initial=0) <= 1
        owner = np.pad((masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(axis=0), 1)
        for shifted in (np.roll(owner, 1, axis=0), np.roll(owner, 1, axis=1)):
            assert not ((owner > 0) & (shifted > 0) & (owner != shifted)).any()


def test_objects_stand_out_from_the_background(config):
    dataset = ShapesDataset(config, "train")
    for index in range(len(dataset)):
        image, masks, _ = dataset.draw(index)
        background = image[~masks.any(axis=0)].mean(axis=0)
        for mask in masks:
            assert np.abs(image[mask].mean(axis=0) - background).max() > 40


def test_images_are_the_same_each_time_and_in_any_order(config):
    once, again = ShapesDataset(config, "train"), ShapesDataset(config, "train")
    drawn = [once[index] for index in range(10)]
    for index in reversed(range(10)):
        np.testing.assert_array_equal(drawn[index].image, again[index].image)
        np.testing.assert_array_equal(drawn[index].objects.boxes, again[index].objects.boxes)


def test_splits_and_seeds_and_images_differ(config):
    other_seed = ShapesConfig(**{**vars(config), "seed": config.seed + 1})
    datasets = [
        ShapesDataset(config, "train"),
        ShapesDataset(config, "val"),
        ShapesDataset(other_seed, "train"),
    ]
    images = [dataset[index].image.tobytes() for dataset in datasets for index in range(20)]
    assert len(set(images)) == len(images)


def test_sizes_vary_within_their_limits_and_are_those_of_the_images(config):
    dataset = ShapesDataset(config, "train")
    assert len(dataset) == len(dataset.sizes) == 60
    assert dataset.sizes.min() >= 40
    assert dataset.sizes.max() <= 70
    assert len(np.unique(dataset.sizes[:, 0])) > 10
    assert len(np.unique(dataset.sizes[:, 1])) > 10
    for index in range(10):
        image = dataset[index].image
        assert image.shape == (*dataset.sizes[index], 3)
        assert image.dtype == np.uint8


def test_numbers_of_objects_range_from_0_to_the_limit_with_all_labels(config):
    dataset = ShapesDataset(ShapesConfig(**{**vars(config), "train_images": 200}), "train")
    objects = [dataset[index].objects for index in range(len(dataset))]
    assert {len(one.labels) for one in objects} == {0, 1, 2, 3, 4}
    labels = np.concatenate([one.labels for one in objects])
    assert set(labels) == set(dataset.categories) == {0, 1, 2}
    assert np.bincount(labels).min() > 0.2 * len(labels)


def test_images_have_no_objects_if_none_are_allowed(config):
    dataset = ShapesDataset(ShapesConfig(**{**vars(config), "max_objects": 0}), "val")
    sample = dataset[0]
    boxes, labels = sample.objects.boxes, sample.objects.labels
    assert boxes.shape == (0, 4)
    assert labels.shape == (0,)


def test_the_ground_truth_equals_the_samples(config):
    dataset = ShapesDataset(config, "val")
    truth = dataset.ground_truth()
    assert [image["id"] for image in truth["images"]] == list(dataset.image_ids)
    assert {category["id"]: category["name"] for category in truth["categories"]} == dataset.categories
    assert [one["id"] for one in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))
    for index, image in enumerate(truth["images"]):
        assert (image["height"], image["width"]) == tuple(dataset.sizes[index])
        _, masks, objects = dataset.draw(index)
        boxes, labels = objects.boxes, objects.labels
        mine = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        assert [one["category_id"] for one in mine] == labels.tolist()
        assert [one["area"] for one in mine] == masks.sum(axis=(1, 2)).tolist()
        for one, box in zip(mine, boxes, strict=True):
            x, y, width, height = one["bbox"]
            np.testing.assert_array_equal([x, y, x + width, y + height], box)
            assert one["iscrowd"] == 0


@pytest.mark.parametrize("kind", SHAPE_KINDS)
def test_each_kind_is_drawn_by_its_geometry(config, kind):
    config = ShapesConfig(**{**vars(config), "kinds": (kind,), "max_objects": 1, "min_size": 160, "max_size": 200})
    dataset = ShapesDataset(config, "val")
    assert dataset.categories == {0: kind}
    share = {
        "circle": np.pi / 4,
        "square": 1,
        "triangle": 1 / 2,
        "cross": 5 / 9,
        "ring": 3 * np.pi / 16,
        "diamond": 1 / 2,
    }
    drawn = [dataset.draw(index) for index in range(len(dataset))]
    found = [
        one.masks[0].sum() / np.prod(one.objects.boxes[0, 2:] - one.objects.boxes[0, :2])
        for one in drawn
        if len(one.masks)
    ]
    assert found
    np.testing.assert_allclose(found, share[kind], atol=0.06)


def test_an_index_out_of_range_is_refused(config):
    dataset = ShapesDataset(config, "val")
    for index in (-1, 40):
        with pytest.raises(IndexError, match=f"Image {index} .* 40"):
            dataset[index]


@pytest.mark.parametrize("size", [1, 4, 8])
def test_the_smallest_images_can_be_drawn(config, size):
    dataset = ShapesDataset(ShapesConfig(**{**vars(config), "min_size": size, "max_size": size}), "train")
    for index in range(len(dataset)):
        _, masks, _ = dataset.draw(index)
        assert masks.any(axis=(1, 2)).all()


def test_the_data_set_is_opened_by_name_and_checked_against_the_number_of_classes(config):
    data = DataConfig(dataset="shapes", sources={"shapes": config})
    source: Source = open_source(Config(data=data, model=ModelConfig(num_classes=3)), "val")
    assert len(source) == 40
    with pytest.raises(DataError, match=r"category 2 \('triangle'\).*num_classes=2.*set it to 3"):
        open_source(Config(data=data, model=ModelConfig(num_classes=2)), "val")
