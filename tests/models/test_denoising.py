"""Denoising slots: what each one starts from, what it sees, and its noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detr_jax.models.denoising import (
    Noise,
    attention_mask,
    draw_noise,
    fill_slots,
    noisy_targets,
    positive_slots,
)
from detr_jax.testing import random_targets

SLOTS, ROOM, QUERIES = 40, 12, 7


def slots_by_definition(counts, number):
    """The used slots of each image: {slot: (group, target, is_negative)}, and the number of groups (DINO, 3.3)."""
    pairs = number // 2
    largest = min(max(*counts, 1), pairs)
    groups = max(1, pairs // largest)
    used = []
    for count in counts:
        found = {}
        for group in range(groups):
            for target in range(min(count, largest)):
                positive = group * 2 * largest + target
                found[positive] = (group, target, False)
                found[positive + largest] = (group, target, True)
        used.append(found)
    return used, groups


def some_counts(rng):
    most = int(rng.integers(1, ROOM + 1))
    return [most, *rng.integers(0, most + 1, 3).tolist()]


COUNTS = {
    "none": lambda rng: [0, 0, 0, 0],
    "one": lambda rng: [0, 1, 0, 0],
    "some": some_counts,
    "full": lambda rng: [ROOM, 0, ROOM, 1],
}


@pytest.mark.parametrize("name", COUNTS)
def test_slots_and_their_attention_follow_the_definition(rng, name):
    counts = COUNTS[name](rng)
    used, groups = slots_by_definition(counts, SLOTS)
    slots = fill_slots(jnp.asarray(counts), SLOTS, ROOM)
    assert int(slots.num_groups) == groups
    mask = np.asarray(attention_mask(slots, QUERIES))
    positives, targets = map(np.asarray, positive_slots(slots))
    for image, of_image in enumerate(used):
        assert np.flatnonzero(slots.is_used[image]).tolist() == sorted(of_image)
        for slot, expected in of_image.items():
            found = (slots.group[image, slot], slots.target[image, slot], slots.is_negative[image, slot])
            assert found == expected
        real = {(slot, target) for slot, (_, target, is_negative) in of_image.items() if not is_negative}
        there = positives[image] >= 0
        assert set(zip(positives[image][there].tolist(), targets[image][there].tolist(), strict=True)) == real
        assert there.sum() == len(real)
        assert not mask[image, :, :QUERIES].any()  # everyone sees the object queries
        assert mask[image, :QUERIES, QUERIES:].all()  # which see no slot
        for slot, (group, *_) in of_image.items():
            seen = {other for other, (other_group, *_) in of_image.items() if other_group == group}
            assert set(np.flatnonzero(~mask[image, QUERIES + slot, QUERIES:])) == seen


def test_more_objects_than_positive_slots_leave_the_last_ones_out():
    slots = fill_slots(jnp.array([ROOM, 3]), 10, ROOM)
    assert int(slots.num_groups) == 1
    positives, targets = positive_slots(slots)
    assert positives.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, -1, -1]]
    assert targets[0].tolist() == [0, 1, 2, 3, 4]


def test_boxes_and_labels_are_disturbed_as_defined(rng):
    counts = some_counts(rng)
    targets = random_targets(rng, counts, num_classes=9, max_objects=ROOM)
    slots = fill_slots(targets.count, SLOTS, ROOM)
    noise = draw_noise(jax.random.key(0), (len(counts), SLOTS), num_classes=9, label_noise=0.5)
    scale = float(rng.uniform(0.3, 1.2))
    labels, boxes = map(np.asarray, noisy_targets(slots, noise, targets, box_noise=scale, eps=1e-3))
    used, _ = slots_by_definition(counts, SLOTS)
    for image, of_image in enumerate(used):
        for slot, (_, target, is_negative) in of_image.items():
            is_random = bool(noise.is_relabelled[image, slot])
            assert labels[image, slot] == (noise.label[image, slot] if is_random else targets.labels[image, target])
            x, y, w, h = np.asarray(targets.boxes[image, target], np.float64)
            shift = np.asarray(noise.shift[image, slot], np.float64)
            shift += np.sign(shift) * is_negative
            corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
            x0, y0, x1, y1 = np.clip(corners + scale * shift * np.array([w, h, w, h]) / 2, 0, 1)
            expected = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0])
            np.testing.assert_allclose(boxes[image, slot], np.clip(expected, 1e-3, 1 - 1e-3), atol=2e-6)


def test_noise_depends_only_on_the_key_and_has_the_right_shares():
    def draw(seed):
        return draw_noise(jax.random.key(seed), (50, 200), num_classes=10, label_noise=0.5)

    noise, again, other = draw(3), jax.jit(lambda: draw(3))(), draw(4)
    for name in Noise._fields:
        np.testing.assert_array_equal(getattr(noise, name), getattr(again, name))
        assert not np.array_equal(getattr(noise, name), getattr(other, name))
    assert float(noise.is_relabelled.mean()) == pytest.approx(0.25, abs=0.03)
    assert set(np.unique(noise.label)) == set(range(10))
    assert float(jnp.abs(noise.shift).max()) <= 1
    assert float(jnp.abs(noise.shift).mean()) == pytest.approx(0.5, abs=0.02)


def test_one_program_serves_every_number_of_objects(rng):
    traces = []

    @jax.jit
    def fill(counts):
        traces.append(1)
        return fill_slots(counts, SLOTS, ROOM)

    for name in COUNTS:
        fill(jnp.asarray(COUNTS[name](rng)))
    assert len(traces) == 1
