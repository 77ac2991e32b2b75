"""Group the images of an epoch into full batches, each of one bucket, with little padding."""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from detr_jax.data.buckets import Bucket

NO_IMAGE = -1
"""The index or id that marks an empty slot of a batch."""

_GAP = 5e-3  # relative difference in padded pixels between an accepted grouping and the best one
_NODES = 50  # limit of the search. Unlike a time limit, it gives the same grouping on every machine


def group(
    sizes: np.ndarray, buckets: Sequence[Bucket], batch_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Full batches of images that share a bucket, with as little padding as the batch size allows.

    Images that do not fill a batch in their smallest bucket move to larger ones, at the lowest cost (`_shares`). Up to
    ``batch_size - 1`` random images are dropped. If the remaining images have no common bucket, some of them are
    dropped and others are used twice. The choice is random in proportion to their numbers, so that each shape is used
    equally often.

    Args:
      sizes: [n, 2] int, (height, width) of the images in pixels. Each fits in some bucket.
      buckets: (height, width) in pixels.
      batch_size: images in a batch.
      rng: draws which images share a batch, and the order of the batches.

    Returns:
      The index of each batch's bucket [batches] int, and the indices of its images [batches, batch_size] int. There
      are ``n // batch_size`` batches, but at least one.
    """
    steps = max(1, len(sizes) // batch_size)
    order = rng.permutation(len(sizes))[: steps * batch_size]
    bucket_of: list[int] = []
    batches: list[np.ndarray] = []
    rests: list[tuple[int, np.ndarray]] = []
    for bucket, placed in enumerate(_placed(sizes, order, buckets, batch_size)):
        images = rng.permutation(placed)
        full = len(images) // batch_size
        batches.append(images[: full * batch_size].reshape(full, batch_size))
        bucket_of += [bucket] * full
        if full * batch_size < len(images):
            rests.append((bucket, images[full * batch_size :]))
    while len(bucket_of) < steps:
        numbers = np.array([len(images) for _, images in rests])
        bucket, images = rests.pop(rng.choice(len(rests), p=numbers / numbers.sum()))
        fitting = np.flatnonzero((sizes <= buckets[bucket]).all(axis=1))
        missing = batch_size - len(images)
        added = rng.choice(fitting, missing, replace=missing > len(fitting))
        batches.append(np.append(images, added)[None])
        bucket_of.append(bucket)
    shuffled = rng.permutation(steps)
    return np.array(bucket_of)[shuffled], np.concatenate(batches)[shuffled]


def group_all(sizes: np.ndarray, buckets: Sequence[Bucket], batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Groups every image exactly once, in order, with the same results as `group`.

    The last batch of a bucket may have fewer images. Its empty slots have the index `NO_IMAGE`.
    """
    bucket_of: list[int] = []
    batches: list[np.ndarray] = []
    for bucket, placed in enumerate(_placed(sizes, np.arange(len(sizes)), buckets, batch_size)):
        number = -(-len(placed) // batch_size)
        rows = np.full(number * batch_size, NO_IMAGE)
        rows[: len(placed)] = np.sort(placed)
        batches.append(rows.reshape(number, batch_size))
        bucket_of += [bucket] * number
    return np.array(bucket_of), np.concatenate(batches)


def _placed(sizes: np.ndarray, order: np.ndarray, buckets: Sequence[Bucket], batch_size: int) -> list[np.ndarray]:
    """The images of each bucket, as indices into ``sizes``. ``order`` [m] int are the images to place."""
    holds = np.all(np.asarray(buckets) >= sizes[order, None], axis=-1)  # [images, buckets]
    kinds, kind_of = _distinct_rows(holds)  # images that fit the same buckets are of one kind
    steps = -(-len(order) // batch_size)
    shares = _shares(kinds, np.bincount(kind_of), np.prod(buckets, axis=1), batch_size, steps)
    split = [np.split(order[kind_of == kind], np.cumsum(share)[:-1]) for kind, share in enumerate(shares)]
    return [np.concatenate(images) for images in zip(*split, strict=True)]


def _distinct_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows of [n, k] bool in lexicographic order, and the index of each row among them, [n] int.

    The result is the same as with `numpy.unique` along an axis. Sorting bytes of eight columns each is much faster.
    """
    first, rank = np.zeros(1, np.int64), np.zeros(len(rows), np.int64)
    for column in np.packbits(rows, axis=1).T:
        _, first, rank = np.unique(256 * rank + column, return_index=True, return_inverse=True)
    return rows[first], rank


def _shares(kinds: np.ndarray, counts: np.ndarray, areas: np.ndarray, batch_size: int, steps: int) -> np.ndarray:
    """How many images of each kind go into each bucket, [kinds, buckets] int.

    The number of batches is minimal, and their pixels are minimal to within `_GAP`. If there are many batches per
    bucket, one pass over the buckets finds such a grouping. Otherwise an integer program finds it.

    Args:
      kinds: [kinds, buckets] bool, the buckets that hold each kind of image.
      counts: [kinds] int, images of each kind.
      areas: [buckets] int, pixels of a bucket.
      batch_size: images in a batch.
      steps: the number of batches.
    """
    lower_bound = np.where(kinds, areas, np.inf).min(axis=1) @ counts / batch_size  # pixels, if all batches were full
    for pull in (True, False):
        shares = _shares_in_one_pass(kinds, counts, areas, batch_size, pull)
        batches = -(-shares.sum(axis=0) // batch_size)
        if batches.sum() == steps and batches @ areas <= (1 + _GAP) * lower_bound:
            return shares
    found = _best_shares(kinds, counts, areas, batch_size, steps)
    return _on_smallest(kinds, counts, areas) if found is None else found


def _on_smallest(kinds: np.ndarray, counts: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """The shares (see `_shares`) if each image is in the smallest bucket that holds it."""
    smallest = np.where(kinds, areas, np.inf).argmin(axis=1)
    return counts[:, None] * (smallest[:, None] == np.arange(len(areas)))


def _shares_in_one_pass(
    kinds: np.ndarray, counts: np.ndarray, areas: np.ndarray, batch_size: int, pull: bool
) -> np.ndarray:
    """The shares (see `_shares`), found by one pass over the buckets that starts with `_on_smallest`.

    With ``pull``, the buckets are visited from the largest on, and each takes the images that its last batch lacks from
    the next smaller buckets. Without ``pull``, they are visited from the smallest on, and each gives the images beyond
    its full batches to the next larger buckets.
    """
    shares = _on_smallest(kinds, counts, areas)
    order = np.argsort(-areas if pull else areas, kind="stable")
    for position, bucket in enumerate(order):
        number = int((-1 if pull else 1) * shares[:, bucket].sum() % batch_size)
        for other in order[position + 1 :]:
            giving, taking = (other, bucket) if pull else (bucket, other)
            for kind in np.flatnonzero(kinds[:, taking] & (shares[:, giving] > 0)):
                moved = min(number, int(shares[kind, giving]))
                shares[kind, giving] -= moved
                shares[kind, taking] += moved
                number -= moved
    return shares


def _best_shares(
    kinds: np.ndarray, counts: np.ndarray, areas: np.ndarray, batch_size: int, steps: int
) -> np.ndarray | None:
    """The shares (see `_shares`), found by an integer program. None if it finds no grouping of full batches."""
    kind, bucket = np.nonzero(kinds)
    pairs, (num_kinds, num_buckets) = len(kind), kinds.shape
    every = np.arange(num_buckets)
    # Each entry holds rows, columns and values. The columns are the images of a kind in a bucket, then the batches of a
    # bucket. The rows say: each image has a slot, the batches of its bucket offer this slot, and there are ``total``
    # batches.
    entries = [
        (kind, np.arange(pairs), np.ones(pairs)),
        (num_kinds + bucket, np.arange(pairs), np.ones(pairs)),
        (num_kinds + every, pairs + every, np.full(num_buckets, -batch_size)),
        (np.full(num_buckets, num_kinds + num_buckets), pairs + every, np.ones(num_buckets)),
    ]
    rows, columns, values = map(np.concatenate, zip(*entries, strict=True))
    matrix = sparse.csr_array((values, (rows, columns)))
    for total in range(steps, steps + num_buckets):
        lower = np.concatenate([counts, np.full(num_buckets, -np.inf), [total]])
        upper = np.concatenate([counts, np.zeros(num_buckets), [total]])
        found = milp(
            np.concatenate([np.zeros(pairs), areas / areas.max()]),
            integrality=np.ones(pairs + num_buckets),
            bounds=Bounds(0, np.inf),
            constraints=LinearConstraint(matrix, lower, upper),
            options={"mip_rel_gap": _GAP, "node_limit": _NODES},
        )
        if found.x is not None:
            shares = np.zeros(kinds.shape, np.int64)
            shares[kind, bucket] = np.rint(found.x[:pairs])
            return shares
    return None
