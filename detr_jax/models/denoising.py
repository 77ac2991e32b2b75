"""Contrastive denoising: queries that start from disturbed targets, in training only (DINO, section 3.3).

The queries fill a fixed number of slots, so that one compiled program serves any number of objects.

Dimensions: ``B`` batch, ``K`` slots, ``T`` targets of an image (padded), ``D`` model width, ``Q`` object queries,
``P`` positive slots, half of the K.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from detr_jax.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from detr_jax.structures import UNMATCHED, Array, Targets


class Slots(NamedTuple):
    """What each slot is for. The number of groups is chosen for the fullest image of the batch."""

    target: jax.Array
    """[B, K] int32, the target that a slot starts from; 0 in unused slots."""
    group: jax.Array
    """[B, K] int32, its group."""
    is_negative: jax.Array
    """[B, K] bool, whether the slot has no object: its box is moved too far."""
    is_used: jax.Array
    """[B, K] bool. The others are neither seen nor trained."""
    num_groups: jax.Array
    """[] int32, groups of an image."""


def fill_slots(counts: Array, number: int, room: int) -> Slots:
    """The slots of images with ``counts`` [B] targets.

    A group has a positive slot for each of the M targets of the fullest image, then as many negative ones. There are
    max(1, floor(number / 2 / M)) groups. In an image with fewer targets, the slots of the missing ones are unused.

    Args:
      counts: [B] int, targets of each image. Those beyond ``number / 2`` get no slot.
      number: K.
      room: T.
    """
    largest = jnp.clip(counts.max(), 1, max(1, min(number // 2, room)))
    num_groups = jnp.maximum(1, number // 2 // largest)
    slot = jnp.arange(number)
    group, place = slot // (2 * largest), slot % (2 * largest)
    target = place % largest
    is_used = (group < num_groups)[None] & (target[None] < counts[:, None])
    shape = is_used.shape
    return Slots(
        target=jnp.where(is_used, target[None], 0),
        group=jnp.broadcast_to(group[None], shape),
        is_negative=jnp.broadcast_to((place >= largest)[None], shape),
        is_used=is_used,
        num_groups=num_groups,
    )


class Noise(NamedTuple):
    """The random numbers of the slots."""

    is_relabelled: jax.Array
    """[B, K] bool, whether a slot gets a random class, which may be the right one."""
    label: jax.Array
    """[B, K] int32, that class."""
    shift: jax.Array
    """[B, K, 4] float32, shift of the corners x0, y0, x1, y1 in half sides of the box: between -1 and 1. Negative slots
    go one further in the same direction."""


def draw_noise(key: jax.Array, shape: tuple[int, ...], *, num_classes: int, label_noise: float) -> Noise:
    """Noise of slots [B, K]. A slot gets a random class with half the probability ``label_noise`` (the original's)."""
    for_choice, for_label, for_shift = jax.random.split(key, 3)
    return Noise(
        is_relabelled=jax.random.uniform(for_choice, shape) < label_noise * 0.5,
        label=jax.random.randint(for_label, shape, 0, num_classes),
        shift=jax.random.uniform(for_shift, (*shape, 4), minval=-1.0, maxval=1.0),
    )


def noisy_targets(
    slots: Slots, noise: Noise, targets: Targets, *, box_noise: float, eps: float
) -> tuple[jax.Array, jax.Array]:
    """Labels [B, K] int32 and boxes [B, K, 4] cxcywh in 0..1 that the slots start from.

    Disturbed corners are clipped to the image. They may cross, and then the side is ``eps``.
    """
    labels = jnp.take_along_axis(targets.labels, slots.target, axis=1)
    labels = jnp.where(noise.is_relabelled, noise.label, labels)
    boxes = jnp.take_along_axis(targets.boxes, slots.target[..., None], axis=1)
    further = jnp.where(slots.is_negative[..., None], jnp.where(noise.shift < 0, -1.0, 1.0), 0.0)
    half_sides = jnp.tile(boxes[..., 2:] / 2, 2)
    corners = cxcywh_to_xyxy(boxes) + (noise.shift + further) * half_sides * box_noise
    disturbed = xyxy_to_cxcywh(jnp.clip(corners, 0.0, 1.0))
    return labels, jax.nn.sigmoid(inverse_sigmoid(disturbed, eps))


def attention_mask(slots: Slots, num_queries: int) -> jax.Array:
    """[B, Q + K, Q + K] bool, True where a query may not see another one. The object queries come first.

    Object queries never see slots. A slot sees the object queries and the used slots of its group.
    """
    of_group = slots.group[:, :, None] == slots.group[:, None]
    seen = of_group & slots.is_used[:, None]
    before_slots = jnp.pad(~seen, [(0, 0), (num_queries, 0), (0, 0)], constant_values=True)
    return jnp.pad(before_slots, [(0, 0), (0, 0), (num_queries, 0)], constant_values=False)


def positive_slots(slots: Slots) -> tuple[jax.Array, jax.Array]:
    """The slot [B, P] of each positive pair, -1 for none, and its target [B, P]."""
    number = slots.target.shape[1]
    is_positive = slots.is_used & ~slots.is_negative
    order = jnp.where(is_positive, jnp.arange(number)[None], number)
    slot = jnp.sort(order, axis=1)[:, : number // 2]
    is_there = slot < number
    target = jnp.take_along_axis(slots.target, jnp.where(is_there, slot, 0), axis=1)
    return jnp.where(is_there, slot, UNMATCHED), target
